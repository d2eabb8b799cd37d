//! A bundle on disk: opened, checked, and its codecs built.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_proto::{
    BundleDigest, CodecError, FeatureCodec, FrequencyTables, LatentShape, OperatingPoint,
    Quantiser, QuantiserError, TableError,
};
use sha2::{Digest, Sha256};

use crate::answer::{Decoders, DecodersError};
use crate::manifest::{FileSpec, Manifest, ManifestError, QuantiserSpec, SplitSpec};
use crate::outcomes::{OUTCOMES, Outcomes};

/// Name of the file that describes a bundle.
pub const MANIFEST: &str = "manifest.toml";

/// Largest manifest that is read (bytes).
const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// Why a bundle was refused. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file that is missing or cannot be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The manifest does not hold together.
    #[error("{}: {source}", file.display())]
    Manifest {
        /// The manifest.
        file: PathBuf,
        /// Which key, and why.
        source: ManifestError,
    },
    /// A file of another length than the manifest says.
    #[error("{}: has {actual} bytes, {MANIFEST} says {expected}", file.display())]
    Length {
        /// The file.
        file: PathBuf,
        /// By the manifest (bytes).
        expected: u64,
        /// On disk (bytes).
        actual: u64,
    },
    /// A detector whose outputs fit no layout, or parameters of one that cannot be meant.
    #[error("{}: {source}", file.display())]
    Decoders {
        /// The manifest.
        file: PathBuf,
        /// Which decoder, and why.
        source: DecodersError,
    },
    /// A file of other content than the manifest fixes.
    #[error("{}: altered or damaged: SHA-256 is {actual}, {MANIFEST} says {expected}", file.display())]
    Digest {
        /// The file.
        file: PathBuf,
        /// By the manifest.
        expected: String,
        /// Of the file.
        actual: String,
    },
    /// A file that the manifest does not list, asked for by name.
    #[error("{}: not listed under [files] of {MANIFEST}", file.display())]
    Unlisted {
        /// The file.
        file: PathBuf,
    },
    /// Frequency tables that no entropy coder can use.
    #[error("{}: {source}", file.display())]
    Tables {
        /// The file of tables.
        file: PathBuf,
        /// Which table, and why.
        source: TableError,
    },
    /// Quantiser parameters that no quantiser can use.
    #[error("{}: {key}: {source}", file.display())]
    Quantiser {
        /// The manifest.
        file: PathBuf,
        /// The quantiser's key.
        key: String,
        /// Which parameter, and why.
        source: QuantiserError,
    },
    /// Latent shape, quantiser and tables that do not fit together.
    #[error("{}: {key}: {source}", file.display())]
    Codec {
        /// The manifest.
        file: PathBuf,
        /// The quantiser's key.
        key: String,
        /// What does not fit.
        source: CodecError,
    },
}

/// Why a text does not name an operating point of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointError {
    /// Not of the form `split/width/cCHANNELS/bBITS`.
    #[error(
        "{0:?} is not an operating point; expected SPLIT/WIDTH/cCHANNELS/bBITS, such as \"{1}\""
    )]
    Form(String, PointName),
    /// A part that the bundle does not have.
    #[error("{point:?}: unknown {what} {asked}; expected {available}")]
    Unknown {
        /// The text.
        point: String,
        /// Which part.
        what: &'static str,
        /// What was asked for.
        asked: String,
        /// What there is, joined by commas.
        available: String,
    },
}

/// An operating point in the words of its bundle, shown as `s16/w100/c16/b6`: split at stride 16,
/// encoder of 100% width, 16 latent channels sent, 6 bits a symbol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PointName {
    /// The split's name.
    pub split: String,
    /// The width's name.
    pub width: String,
    /// Latent channels sent.
    pub channels: u16,
    /// Quantiser depth (bits).
    pub bits: u8,
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PointName { split, width, channels, bits } = self;
        write!(f, "{split}/{width}/c{channels}/b{bits}")
    }
}

/// An operating point as it was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// The point.
    pub point: OperatingPoint,
    /// Mean quality of the answers to validation pictures, 0..=1.
    pub quality: f64,
    /// Mean length of the coded stream (bytes).
    pub bytes_mean: f64,
    /// Median length (bytes).
    pub bytes_p50: f64,
    /// 99th percentile of the length (bytes).
    pub bytes_p99: f64,
}

/// A trained network, cut for two machines, with all that must match its weights.
///
/// Opening one reads and checks every file, but keeps only the manifest and the codecs: graphs
/// are read when a [`Head`](crate::Head), [`Tail`](crate::Tail) or [`Full`](crate::Full) is loaded.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    digest: BundleDigest,
    /// By split, width and bits.
    codecs: BTreeMap<(u8, u8, u8), FeatureCodec>,
    ladder: Vec<Rung>,
    decoders: Arc<Decoders>,
}

fn file_spec(bytes: &[u8]) -> FileSpec {
    let sha256 = BundleDigest(Sha256::digest(bytes).into()).to_string();
    FileSpec { bytes: bytes.len() as u64, sha256 }
}

impl Bundle {
    /// Opens the bundle in folder `dir`: checks its manifest, the length and SHA-256 of every
    /// file, and builds its codecs.
    ///
    /// ```
    /// use isthmus_models::Bundle;
    /// let error = Bundle::open("no/such/bundle".as_ref()).unwrap_err();
    /// assert!(error.to_string().starts_with("no/such/bundle/manifest.toml: "));
    /// ```
    pub fn open(dir: &Path) -> Result<Bundle, BundleError> {
        let path = dir.join(MANIFEST);
        let (text, digest) = read_manifest(&path)?;
        let manifest = Manifest::parse(&text)
            .map_err(|source| BundleError::Manifest { file: path.clone(), source })?;
        for (name, expected) in &manifest.files {
            hash_file(&dir.join(name), expected, &mut |_| {})?;
        }
        let input = (manifest.input.width, manifest.input.height);
        let decoders = Decoders::new(&manifest.decoders, input);
        let decoders = decoders.map_err(|source| BundleError::Decoders { file: path, source })?;
        let mut bundle = Bundle {
            decoders: Arc::new(decoders),
            dir: dir.to_owned(),
            manifest,
            digest,
            codecs: BTreeMap::new(),
            ladder: Vec::new(),
        };
        bundle.codecs = bundle.build_codecs()?;
        bundle.ladder = bundle.build_ladder();
        Ok(bundle)
    }

    /// The bytes of one of its files, checked against the manifest once more.
    pub fn read(&self, file: &str) -> Result<Vec<u8>, BundleError> {
        let path = self.dir.join(file);
        let Some(expected) = self.manifest.files.get(file) else {
            return Err(BundleError::Unlisted { file: path });
        };
        let mut bytes = Vec::new();
        hash_file(&path, expected, &mut |chunk| bytes.extend_from_slice(chunk))?;
        Ok(bytes)
    }

    /// Writes `bytes` in the place of one of its files, and the manifest that fixes them, with another
    /// `version`: it is another bundle then, with a digest of its own. Gives it opened.
    pub fn replace(&self, file: &str, bytes: &[u8], version: &str) -> Result<Bundle, BundleError> {
        let path = self.dir.join(file);
        let mut manifest = self.manifest.clone();
        let Some(spec) = manifest.files.get_mut(file) else {
            return Err(BundleError::Unlisted { file: path });
        };
        *spec = file_spec(bytes);
        self.rewrite(manifest, path, bytes, version)
    }

    /// Writes another record of outcomes and what the manifest says of it; see
    /// [`replace`](Bundle::replace).
    pub fn replace_record(
        &self,
        outcomes: &Outcomes,
        version: &str,
    ) -> Result<Bundle, BundleError> {
        let path = self.dir.join(OUTCOMES);
        let packed = outcomes.pack();
        let bytes = packed.map_err(|source| BundleError::Io { file: path.clone(), source })?;
        let mut manifest = self.manifest.clone();
        manifest.files.insert(OUTCOMES.to_owned(), file_spec(&bytes));
        outcomes.describe(&mut manifest);
        self.rewrite(manifest, path, &bytes, version)
    }

    /// Writes a file and the manifest that names it.
    fn rewrite(
        &self,
        mut manifest: Manifest,
        path: PathBuf,
        bytes: &[u8],
        version: &str,
    ) -> Result<Bundle, BundleError> {
        version.clone_into(&mut manifest.version);
        let manifest_path = self.dir.join(MANIFEST);
        let text = toml::to_string(&manifest)
            .map_err(|error| ManifestError::Syntax(error.to_string()))
            .and_then(|text| Manifest::parse(&text).map(|_| text))
            .map_err(|source| BundleError::Manifest { file: manifest_path.clone(), source })?;
        // Both are whole before either takes its place.
        let placed = [(path, bytes), (manifest_path, text.as_bytes())].map(|(file, bytes)| {
            let mut partial = file.clone().into_os_string();
            partial.push(".partial");
            let written = fs::write(&partial, bytes).map(|()| partial);
            (written, file)
        });
        for (partial, file) in placed {
            let moved = partial.and_then(|partial| fs::rename(partial, &file));
            moved.map_err(|source| BundleError::Io { file, source })?;
        }
        Bundle::open(&self.dir)
    }

    /// Its files of reference values; [`read`](Bundle::read) each and
    /// [parse](crate::Golden::parse) it.
    pub fn golden_files(&self) -> impl Iterator<Item = &str> {
        let files = self.manifest.files.keys().map(String::as_str);
        let ending =
            |file: &str| file.ends_with(".safetensors") || file.ends_with(".safetensors.zst");
        files.filter(move |file| file.starts_with("goldens/") && ending(file))
    }

    /// The point that `text`, such as `s16/w100/c16/b6`, names. It need not have been measured.
    pub fn parse_point(&self, text: &str) -> Result<OperatingPoint, PointError> {
        let form = || PointError::Form(text.to_owned(), self.describe_point(self.default_point()));
        let parts: Vec<&str> = text.split('/').collect();
        let &[split, width, channels, bits] = parts.as_slice() else { return Err(form()) };
        let number = |part: &str, letter| part.strip_prefix(letter)?.parse::<u16>().ok();
        let channels = number(channels, 'c').ok_or_else(form)?;
        let bits = number(bits, 'b').ok_or_else(form)?;

        let find = |what, asked: String, available: Vec<String>| {
            available.iter().position(|name| *name == asked).map(|at| at as u8).ok_or_else(|| {
                let (point, available) = (text.to_owned(), available.join(", "));
                PointError::Unknown { point, what, asked, available }
            })
        };
        let splits = &self.manifest.splits;
        let at_split = find("split", split.into(), names(splits, |s| &s.name))?;
        let split = &splits[usize::from(at_split)];
        let at_width = find("width", width.into(), names(&split.widths, |w| &w.name))?;
        let quantisers = &split.widths[usize::from(at_width)].quantisers;
        let layer = find("channel count", channels.to_string(), names(&split.channels, |c| c))?;
        find("bit depth", bits.to_string(), names(quantisers, |q| &q.bits))?;
        Ok(OperatingPoint { split: at_split, width: at_width, layers: layer + 1, bits: bits as u8 })
    }

    /// Positions of a split and of a width within it, by their names.
    pub fn find_head(&self, split: &str, width: &str) -> Option<(u8, u8)> {
        let at_split = self.manifest.splits.iter().position(|it| it.name == split)?;
        let widths = &self.manifest.splits[at_split].widths;
        let at_width = widths.iter().position(|it| it.name == width)?;
        Some((at_split as u8, at_width as u8))
    }

    /// A point in the bundle's words; a part that the bundle does not have is shown as `?` or 0.
    pub fn describe_point(&self, point: OperatingPoint) -> PointName {
        let split = self.split(point.split);
        let width = split.and_then(|split| split.widths.get(usize::from(point.width)));
        let layer = usize::from(point.layers).checked_sub(1);
        let channels = split.zip(layer).and_then(|(split, layer)| split.channels.get(layer));
        PointName {
            split: split.map_or("?", |split| &split.name).to_owned(),
            width: width.map_or("?", |width| &width.name).to_owned(),
            channels: channels.copied().unwrap_or(0),
            bits: point.bits,
        }
    }

    /// The point to use where nothing else was asked for: the best of those measured,
    /// of equals the one with the fewest bytes; without measurements the last width and bit depth
    /// of the first split, with all layers.
    pub fn default_point(&self) -> OperatingPoint {
        let best = self.ladder.iter().max_by(|a, b| {
            a.quality.total_cmp(&b.quality).then(b.bytes_mean.total_cmp(&a.bytes_mean))
        });
        if let Some(best) = best {
            return best.point;
        }
        let layers = self.manifest.splits[0].channels.len() as u8;
        let widest = self.codecs.keys().rfind(|(split, ..)| *split == 0);
        let &(split, width, bits) = widest.unwrap_or(&(0, 0, 1));
        OperatingPoint { split, width, layers, bits }
    }

    /// Every point that the bundle can run and code, whether it was measured or not, in order.
    pub fn all_points(&self) -> Vec<OperatingPoint> {
        let points = |(&(split, width, bits), codec): (&(u8, u8, u8), &FeatureCodec)| {
            let layers = 1..=codec.shape().channels.len() as u8;
            layers.map(move |layers| OperatingPoint { split, width, layers, bits })
        };
        let mut points: Vec<OperatingPoint> = self.codecs.iter().flat_map(points).collect();
        points.sort_unstable();
        points
    }

    /// Whether the bundle can run and code `point`.
    pub fn has_point(&self, point: &OperatingPoint) -> bool {
        let codec = self.codec(point.split, point.width, point.bits);
        codec.is_some_and(|codec| {
            (1..=codec.shape().channels.len()).contains(&usize::from(point.layers))
        })
    }

    /// The codec of a split and width, by position, and a bit depth.
    pub fn codec(&self, split: u8, width: u8, bits: u8) -> Option<&FeatureCodec> {
        self.codecs.get(&(split, width, bits))
    }

    /// The same with one table a channel, whatever contexts the bundle codes with: to measure what
    /// they save. `None` if the bundle has no such quantiser.
    pub fn codec_by_channel(
        &self,
        split: u8,
        width: u8,
        bits: u8,
    ) -> Result<Option<FeatureCodec>, BundleError> {
        let quantiser = self.split(split).zip(self.quantiser(split, width, bits));
        let by_channel = |(split_spec, spec): (&SplitSpec, &QuantiserSpec)| {
            let spec = QuantiserSpec { contexts: None, ..spec.clone() };
            self.build_codec(split_spec, &spec, format!("splits[{split}].widths[{width}]"))
        };
        quantiser.map(by_channel).transpose()
    }

    /// The quantiser of a split and width, by position, and a bit depth.
    pub fn quantiser(&self, split: u8, width: u8, bits: u8) -> Option<&QuantiserSpec> {
        let width = self.split(split)?.widths.get(usize::from(width))?;
        width.quantisers.iter().find(|quantiser| quantiser.bits == bits)
    }

    /// The measured operating points, in the manifest's order.
    pub fn points(&self) -> &[Rung] {
        &self.ladder
    }

    /// The bundle's name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// SHA-256 of the manifest, which fixes every other file.
    pub fn digest(&self) -> BundleDigest {
        self.digest
    }

    /// Name of each class of the first decoder; none where it has no classes.
    pub fn labels(&self) -> &[String] {
        self.manifest.decoders.first().map_or(&[], |first| &first.labels)
    }

    /// What makes answers of its networks' outputs.
    pub fn decoders(&self) -> &Arc<Decoders> {
        &self.decoders
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A split by position.
    pub fn split(&self, split: u8) -> Option<&SplitSpec> {
        self.manifest.splits.get(usize::from(split))
    }

    fn build_codecs(&self) -> Result<BTreeMap<(u8, u8, u8), FeatureCodec>, BundleError> {
        let mut codecs = BTreeMap::new();
        for (s, split) in self.manifest.splits.iter().enumerate() {
            for (w, width) in split.widths.iter().enumerate() {
                for (q, quantiser) in width.quantisers.iter().enumerate() {
                    let key = format!("splits[{s}].widths[{w}].quantisers[{q}]");
                    let codec = self.build_codec(split, quantiser, key)?;
                    codecs.insert((s as u8, w as u8, quantiser.bits), codec);
                }
            }
        }
        Ok(codecs)
    }

    fn build_codec(
        &self,
        split: &SplitSpec,
        spec: &QuantiserSpec,
        key: String,
    ) -> Result<FeatureCodec, BundleError> {
        let manifest = || self.dir.join(MANIFEST);
        let quantiser = Quantiser::new(
            spec.bits,
            spec.scale.clone(),
            spec.zero_point.clone(),
            spec.prior_mean.clone(),
        );
        let quantiser = quantiser.map_err(|source| BundleError::Quantiser {
            file: manifest(),
            key: key.clone(),
            source,
        })?;
        let [channels, height, width] = split.latent;
        let file = spec.contexts.as_ref().unwrap_or(&spec.tables);
        let bytes = self.read(file)?;
        let tables = match spec.contexts {
            Some(_) => FrequencyTables::with_contexts(spec.bits, channels.into(), &bytes),
            None => FrequencyTables::from_bytes(spec.bits, channels.into(), &bytes),
        };
        let tables =
            tables.map_err(|source| BundleError::Tables { file: self.dir.join(file), source })?;
        let shape = LatentShape { channels: split.channels.clone(), height, width };
        FeatureCodec::new(shape, quantiser, tables).map_err(|source| BundleError::Codec {
            file: manifest(),
            key,
            source,
        })
    }

    fn build_ladder(&self) -> Vec<Rung> {
        let rung = |spec: &crate::manifest::PointSpec| {
            let split = self.manifest.splits.iter().position(|split| split.name == spec.split)?;
            let SplitSpec { channels, widths, .. } = &self.manifest.splits[split];
            let width = widths.iter().position(|width| width.name == spec.width)?;
            let layer = channels.iter().position(|&channels| channels == spec.channels)?;
            let point = OperatingPoint {
                split: split as u8,
                width: width as u8,
                layers: layer as u8 + 1,
                bits: spec.bits,
            };
            Some(Rung {
                point,
                quality: spec.quality,
                bytes_mean: spec.bytes_mean,
                bytes_p50: spec.bytes_p50,
                bytes_p99: spec.bytes_p99,
            })
        };
        // A manifest that was parsed names only points that are there.
        self.manifest.points.iter().filter_map(rung).collect()
    }
}

fn names<T, N: ToString>(items: &[T], name: impl Fn(&T) -> &N) -> Vec<String> {
    items.iter().map(|item| name(item).to_string()).collect()
}

fn read_manifest(path: &Path) -> Result<(String, BundleDigest), BundleError> {
    let io = |source| BundleError::Io { file: path.to_owned(), source };
    let mut bytes = Vec::new();
    open_regular(path)
        .map_err(io)?
        .take(MAX_MANIFEST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(io(io::Error::other(format!("longer than {MAX_MANIFEST_BYTES} bytes"))));
    }
    let digest = BundleDigest(Sha256::digest(&bytes).into());
    let text = String::from_utf8(bytes).map_err(|error| io(io::Error::other(error)))?;
    Ok((text, digest))
}

/// Opens a regular file; to open a pipe would wait for somebody who writes.
fn open_regular(path: &Path) -> io::Result<File> {
    match fs::metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Reads a file in pieces, giving each to `take`, and checks its length and digest. No more is
/// read than the manifest announces, so a file that grew costs nothing.
fn hash_file(
    path: &Path,
    expected: &FileSpec,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), BundleError> {
    let io = |source| BundleError::Io { file: path.to_owned(), source };
    let mut file = open_regular(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if metadata.len() != expected.bytes {
        let (expected, actual) = (expected.bytes, metadata.len());
        return Err(BundleError::Length { file: path.to_owned(), expected, actual });
    }
    let mut reader = Read::by_ref(&mut file).take(expected.bytes);
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 64 << 10]);
    loop {
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => {
                hash.update(&piece[..read]);
                take(&piece[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io(error)),
        }
    }
    let actual = BundleDigest(hash.finalize().into()).to_string();
    if !actual.eq_ignore_ascii_case(&expected.sha256) {
        let expected = expected.sha256.clone();
        return Err(BundleError::Digest { file: path.to_owned(), expected, actual });
    }
    Ok(())
}
