//! How long a device takes for what it runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use isthmus_head_client::{ImageRun, Load};
use isthmus_models::ImageSpec;
use isthmus_proto::{ImageFormat, Timestamp};
use serde::Deserialize;

use crate::link::duration::{map_of_milliseconds, milliseconds, optional_milliseconds};

/// The built-in devices, by name.
pub const BUILT_IN: [(&str, &str); 4] = [
    ("pi4", include_str!("../../../configs/devices/pi4.toml")),
    ("pi5", include_str!("../../../configs/devices/pi5.toml")),
    ("jetson-nano", include_str!("../../../configs/devices/jetson-nano.toml")),
    ("orin-nano", include_str!("../../../configs/devices/orin-nano.toml")),
];

/// Why a device cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Neither a built-in device nor a file.
    #[error("unknown device {name}; expected one of {}, or the path of a TOML file", names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("{name}: {cause}")]
    Io {
        /// The file.
        name: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// No TOML, or a key that is missing, unknown or of the wrong type.
    #[error("{name}: {cause}")]
    Syntax {
        /// The file or name.
        name: String,
        /// Where and what.
        cause: Box<toml::de::Error>,
    },
    /// A value out of its range.
    #[error("{0}")]
    Value(String),
    /// A head whose time is not known.
    #[error(
        "the device says nothing about head {0}: name its time under [heads], or give \
         ms_per_mmac and a bundle, whose manifest has the head's size"
    )]
    Head(String),
    /// An image codec whose time is not known.
    #[error(
        "the device says nothing about pictures as {0}, which the record holds: name the codec's \
         time under [image_ms_per_megapixel]"
    )]
    Image(&'static str),
}

/// A device, as its file says it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// For people.
    pub description: String,
    /// Where the numbers come from, or that they are assumed.
    pub source: String,
    /// Time of a head (ms for each million multiply-accumulates).
    pub ms_per_mmac: Option<f64>,
    /// Time of heads by name, such as `"s16/w100" = "12.5ms"`: it goes before `ms_per_mmac`.
    #[serde(default, deserialize_with = "map_of_milliseconds")]
    pub heads: BTreeMap<String, f64>,
    /// `full`: time of the full network on the device (ms): it goes before `ms_per_mmac`.
    #[serde(
        default,
        rename = "full",
        alias = "full_ms",
        deserialize_with = "optional_milliseconds"
    )]
    pub full_ms: Option<f64>,
    /// `preprocess`: preprocessing (ms).
    #[serde(rename = "preprocess", alias = "preprocess_ms", deserialize_with = "milliseconds")]
    pub preprocess_ms: f64,
    /// `encode`: quantising and coding (ms).
    #[serde(rename = "encode", alias = "encode_ms", deserialize_with = "milliseconds")]
    pub encode_ms: f64,
    /// Cropping, resizing and compressing a picture, by codec (ms for each million pixels of the
    /// compressed picture).
    #[serde(default)]
    pub image_ms_per_megapixel: BTreeMap<ImageFormat, f64>,
    /// 95th percentile over median, at least 1.
    pub p95_over_p50: f64,
}

impl DeviceSpec {
    /// The built-in device of this name, or that of the TOML file at this path.
    pub fn find(name: &str) -> Result<DeviceSpec, DeviceError> {
        let built_in = BUILT_IN.iter().find(|(built_in, _)| *built_in == name);
        let text = match built_in {
            Some((_, text)) => (*text).to_owned(),
            None if !name.ends_with(".toml") && !Path::new(name).exists() => {
                return Err(DeviceError::Unknown { name: name.to_owned() });
            }
            None => fs::read_to_string(name)
                .map_err(|cause| DeviceError::Io { name: name.to_owned(), cause })?,
        };
        toml::from_str(&text).map_err(|cause| {
            let cause = Box::new(cause);
            DeviceError::Syntax { name: name.to_owned(), cause }
        })
    }

    /// Time of preprocessing and the full network (ms), if it has so many multiply-accumulates; `None`
    /// where nothing is known.
    pub fn full_time(&self, macs: u64) -> Option<f64> {
        let of_size = |per_mmac| (macs > 0).then_some(per_mmac * macs as f64 / 1e6);
        let time = self.full_ms.or_else(|| self.ms_per_mmac.and_then(of_size))?;
        Some(self.preprocess_ms + time)
    }

    /// The device for `heads`, by split and width, each with its name and, where known, its
    /// multiply-accumulates, for an full network of so many, 0 where that is not known, and for
    /// pictures of so many pixels.
    pub fn to_device(
        &self,
        heads: &BTreeMap<(u8, u8), (String, Option<u64>)>,
        full: u64,
        images: &BTreeMap<ImageSpec, u64>,
        slowdowns: Vec<(Timestamp, f64)>,
    ) -> Result<Device, DeviceError> {
        let ms = |name: &str, ms: f64| {
            let bad =
                || DeviceError::Value(format!("{name}: {ms} ms is not a duration of 0 or more"));
            if (0.0..1e7).contains(&ms) { Ok(ms) } else { Err(bad()) }
        };
        let spread = self.p95_over_p50;
        if !(1.0..=10.0).contains(&spread) {
            let problem = format!("p95_over_p50: {spread} is not within 1 to 10");
            return Err(DeviceError::Value(problem));
        }
        let preprocess = ms("preprocess_ms", self.preprocess_ms)?;
        let encode = ms("encode_ms", self.encode_ms)?;
        let mut times = BTreeMap::new();
        for (&head, (name, macs)) in heads {
            let time = match (self.heads.get(name), self.ms_per_mmac, macs) {
                (Some(&time), ..) => ms(&format!("heads.{name}"), time)?,
                (None, Some(per_mmac), Some(macs)) => {
                    ms("ms_per_mmac", per_mmac)? * *macs as f64 / 1e6
                }
                _ => return Err(DeviceError::Head(name.clone())),
            };
            times.insert(head, preprocess + time);
        }
        let mut compress = BTreeMap::new();
        for (&image, &pixels) in images {
            let name = image.format.name();
            let per_megapixel = self.image_ms_per_megapixel.get(&image.format);
            let per_megapixel = *per_megapixel.ok_or(DeviceError::Image(name))?;
            let per_megapixel = ms(&format!("image_ms_per_megapixel.{name}"), per_megapixel)?;
            compress.insert(image, per_megapixel * pixels as f64 / 1e6);
        }
        let full = self.full_time(full).map(|time| ms("full_ms", time)).transpose()?;
        // A log-normal's 95th percentile is 1.645 deviations above its median.
        let deviation = spread.ln() / 1.645;
        Ok(Device { heads: times, full, encode, compress, deviation, slowdowns })
    }
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

/// How long a device takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Preprocessing and head (ms), by split and width.
    heads: BTreeMap<(u8, u8), f64>,
    /// Preprocessing and the full network (ms), where it is known.
    full: Option<f64>,
    /// ms.
    encode: f64,
    /// Compressing a picture (ms).
    compress: BTreeMap<ImageSpec, f64>,
    /// Of a time's logarithm.
    deviation: f64,
    /// From when on it takes so many times as long.
    slowdowns: Vec<(Timestamp, f64)>,
}

impl Device {
    /// Time of the networks that are run for `load`, and of coding: features, or the picture. Started
    /// at `now`; `noise` is standard normal.
    pub fn times(&self, now: Timestamp, load: Load, noise: f64) -> (Duration, Duration) {
        let past = self.slowdowns.iter().rev().find(|(from, _)| *from <= now);
        let factor = past.map_or(1.0, |(_, factor)| *factor) * (self.deviation * noise).exp();
        let time = |ms: f64| Duration::from_micros((ms * factor * 1e3).round() as u64);
        let head = |head| self.heads.get(&head).copied().unwrap_or(0.0);
        let (network, coding) = match load {
            Load::Head(split, width) => (head((split, width)), self.encode),
            Load::Image(ImageRun { image, exit }) => {
                let compress = self.compress.get(&image).copied().unwrap_or(0.0);
                (exit.map_or(0.0, head), compress)
            }
            Load::Local => (self.full.unwrap_or(0.0), 0.0),
        };
        (time(network), time(coding))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> DeviceSpec {
        DeviceSpec {
            description: "x".into(),
            source: "x".into(),
            ms_per_mmac: Some(0.5),
            heads: [("s16/w100".to_owned(), 12.0)].into(),
            full_ms: None,
            preprocess_ms: 1.0,
            encode_ms: 2.0,
            image_ms_per_megapixel: [(ImageFormat::Jpeg, 100.0)].into(),
            p95_over_p50: 1.2,
        }
    }

    #[test]
    fn every_built_in_device_is_valid_and_says_its_source() {
        let heads = [((0, 0), ("s16/w25".to_owned(), Some(10_000_000)))].into();
        let image = |format| ImageSpec { format, side: 160, quality: 30 };
        let images = [ImageFormat::Jpeg, ImageFormat::Webp].map(|it| (image(it), 160 * 160)).into();
        for (name, _) in BUILT_IN {
            let spec = DeviceSpec::find(name).expect(name);
            assert!(!spec.source.is_empty());
            spec.to_device(&heads, 0, &images, Vec::new()).expect(name);
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/devices");
        assert_eq!(fs::read_dir(folder).expect("the folder").count(), BUILT_IN.len());
    }

    #[test]
    fn times_are_named_or_scale_with_the_head_s_size_and_the_heat() {
        let heads = [
            ((0, 0), ("s16/w100".to_owned(), None)),
            ((0, 1), ("s16/w50".to_owned(), Some(20_000_000))),
        ]
        .into();
        let hot = Timestamp::from_micros(1_000_000);
        let image = ImageSpec { format: ImageFormat::Jpeg, side: 200, quality: 30 };
        let images = [(image, 200 * 150)].into();
        let device =
            spec().to_device(&heads, 80_000_000, &images, vec![(hot, 3.0)]).expect("known");
        let ms = Duration::from_millis;
        let times = |at, load| device.times(at, load, 0.0);
        assert_eq!(times(Timestamp::ZERO, Load::Head(0, 0)), (ms(13), ms(2)));
        assert_eq!(times(Timestamp::ZERO, Load::Head(0, 1)), (ms(11), ms(2)));
        assert_eq!(times(hot, Load::Head(0, 0)), (ms(39), ms(6)));
        assert_eq!(times(hot, Load::Local), (ms(123), ms(0)));
        let picture = |exit| Load::Image(ImageRun { image, exit });
        assert_eq!(times(Timestamp::ZERO, picture(None)), (ms(0), ms(3)));
        assert_eq!(times(hot, picture(Some((0, 1)))), (ms(33), ms(9)));
        let (late, _) = device.times(Timestamp::ZERO, Load::Head(0, 0), 1.645);
        assert_eq!(late, Duration::from_micros(15_600));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let heads = [((0, 0), ("s16/w25".to_owned(), None))].into();
        let none = BTreeMap::new();
        let error =
            spec().to_device(&heads, 0, &none, Vec::new()).expect_err("no size").to_string();
        assert!(error.contains("s16/w25") && error.contains("ms_per_mmac"), "{error}");
        let wild = DeviceSpec { p95_over_p50: 0.5, ..spec() };
        assert!(wild.to_device(&heads, 0, &none, Vec::new()).is_err());
        let webp = ImageSpec { format: ImageFormat::Webp, side: 160, quality: 30 };
        let images = [(webp, 160 * 160)].into();
        let error =
            spec().to_device(&BTreeMap::new(), 0, &images, Vec::new()).expect_err("no time");
        assert!(error.to_string().contains("pictures as webp"), "{error}");
        assert!(DeviceSpec::find("pi9").expect_err("none").to_string().contains("pi4"));
    }
}
