#!/usr/bin/env bash
# Makes Debian packages of a head-client that was built, and of bundles.
#
#     deploy/package-deb.sh OUT HEAD_CLIENT MANUAL [BUNDLE…]
#
# OUT gets isthmus-head_VERSION_ARCH.deb and, for every bundle's folder,
# isthmus-bundle-NAME_VERSION_all.deb. The architecture is the program's. MANUAL is the folder that
# `cargo run --release -p isthmus-head-client --example manual -- MANUAL` wrote.
set -euo pipefail
umask 022

(($# >= 3)) || { sed -n '4,8s/^# \?//p' "$0" >&2; exit 2; }
out=$1 program=$2 manual=$3
shift 3
repo=$(dirname "$0")/..
maintainer=${MAINTAINER:-"The Isthmus developers <isthmus@localhost>"}

fail() {
    echo "package-deb: $*" >&2
    exit 1
}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
mkdir -p "$out"

# build NAME VERSION ARCH DESCRIPTION [FIELD…]: a package of what $stage/NAME holds.
build() {
    local root=$stage/$1 name=$1 version=$2 arch=$3 description=$4
    shift 4
    install -Dm644 "$repo/LICENSE-MIT" "$repo/LICENSE-APACHE" -t "$root/usr/share/doc/$name"
    mkdir -p "$root/DEBIAN"
    {
        printf '%s\n' "Package: $name" "Version: $version" "Architecture: $arch" \
            "Maintainer: $maintainer" "Section: misc" "Priority: optional" \
            "Homepage: https://github.com/isthmus-split/isthmus" \
            "Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)" "$@" \
            "Description: $description"
    } > "$root/DEBIAN/control"
    dpkg-deb --build --root-owner-group -Zxz "$root" "$out/${name}_${version}_$arch.deb" > /dev/null
    echo "$out/${name}_${version}_$arch.deb: $(stat -c %s "$out/${name}_${version}_$arch.deb") bytes"
}

# The program.
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
case $(readelf -h "$program" | sed -n 's/^ *Machine: *//p') in
    *X86-64) arch=amd64 ;;
    AArch64) arch=arm64 ;;
    *) fail "$program is for neither x86-64 nor aarch64" ;;
esac
fields=()
if readelf -d "$program" | grep -q NEEDED; then
    glibc=$(readelf -W --version-info "$program" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
    fields+=("Depends: libc6 (>= ${glibc#GLIBC_}), libgcc-s1")
fi
fields+=("Recommends: isthmus-bundle" "Suggests: ffmpeg")

root=$stage/isthmus-head
install -Dm755 "$program" "$root/usr/bin/head-client"
for page in "$manual"/*.1; do
    install -Dm644 "$page" -t "$root/usr/share/man/man1"
    gzip -9n "$root/usr/share/man/man1/${page##*/}"
done
install -Dm644 "$manual/head-client.bash" "$root/usr/share/bash-completion/completions/head-client"
install -Dm644 "$manual/_head-client" -t "$root/usr/share/zsh/vendor-completions"
install -Dm644 "$manual/head-client.fish" -t "$root/usr/share/fish/vendor_completions.d"
install -Dm644 "$repo/deploy/debian/isthmus-head.service" -t "$root/usr/lib/systemd/system"
install -Dm755 "$repo/deploy/debian/camera" -t "$root/etc/isthmus"
# The repository's configuration, with what the service needs filled in.
sed -e 's|^# bundle = "[^"]*" *|bundle = "/usr/share/isthmus/bundles/street"   |' \
    -e 's|^# input = |input = |' -e 's|^format = "text" |format = "json" |' \
    "$repo/configs/client.toml" | install -Dm644 /dev/stdin "$root/etc/isthmus/client.toml"
for line in 'bundle = "/usr' 'input = "-"' 'format = "json"'; do
    grep -q "^$line" "$root/etc/isthmus/client.toml" || fail "configs/client.toml has no line for $line"
done
mkdir -p "$root/DEBIAN"
printf '%s\n' /etc/isthmus/client.toml /etc/isthmus/camera > "$root/DEBIAN/conffiles"
install -m755 "$repo"/deploy/debian/{postinst,prerm,postrm} -t "$root/DEBIAN"
build isthmus-head "$version" "$arch" "device's side of Isthmus, a split-computing system
 Runs a neural network's head on the frames of a camera, sends its features to a
 tail-server and writes out the answers, each within its deadline." "${fields[@]}"

# Bundles.
for bundle; do
    name=$(basename "$bundle")
    version=$(sed -n '1,/^\[/s/^version = "\(.*\)"/\1/p' "$bundle/manifest.toml")
    [[ -n $version ]] || fail "$bundle/manifest.toml has no version"
    mkdir -p "$stage/isthmus-bundle-$name/usr/share/isthmus/bundles"
    cp -r "$bundle" "$stage/isthmus-bundle-$name/usr/share/isthmus/bundles/$name"
    build "isthmus-bundle-$name" "$version" all "network for Isthmus: $name
 A digest-checked bundle, for the device and the server alike." "Provides: isthmus-bundle"
done
