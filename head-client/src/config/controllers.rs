//! The factory of controllers: from options and a bundle to what decides frame by frame.

use std::sync::Arc;
use std::time::Duration;

use isthmus_models::{
    Bundle, Engine, EngineKindError, ImageSpec, InputSpec, MAX_IMAGE_SCALE, has_image_format,
};
use isthmus_proto::{ImageFormat, OperatingPoint};

use super::error::{ConfigError, within};
use super::ladder::BundleLadderError;
use super::objective::{ObjectiveError, ObjectiveKind};
use super::options::{ArmKind, Options};
use crate::controller::{
    Arms, Controller, ControllerKind, Filter, Filtered, ImageRun, Ladder, MpcConfig, Run,
};

impl ControllerKind {
    /// The controller for `bundle`: `point` is what `fixed` runs; `config` and `arms` are for those
    /// that choose.
    pub fn to_controller(
        self,
        bundle: &Bundle,
        point: OperatingPoint,
        config: MpcConfig,
        arms: Arms,
    ) -> Result<Box<dyn Controller>, BundleLadderError> {
        self.with(point, config).build(|| Ladder::of_bundle(bundle, arms).map(Arc::new))
    }
}

impl Options {
    /// The engine that runs the head.
    pub fn to_engine(&self) -> Result<Box<dyn Engine>, EngineKindError> {
        let providers = self.ort_providers.as_deref().unwrap_or_default();
        self.engine.unwrap_or_default().open(providers)
    }

    /// The settings of the controller `mpc`.
    pub fn to_mpc_config(&self) -> Result<MpcConfig, ObjectiveError> {
        let default = MpcConfig::default();
        let kind = self.objective.unwrap_or_default();
        let objective = kind.with(self.quality_floor, self.watts, self.joules_per_megabyte)?;
        Ok(MpcConfig {
            objective,
            target_miss: self.target_miss.unwrap_or(default.target_miss),
            interval: self.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            ..default
        })
    }

    /// The controller for `bundle`; `point` is what the fixed one runs.
    pub fn to_controller(
        &self,
        bundle: &Bundle,
        point: OperatingPoint,
    ) -> Result<Box<dyn Controller>, ConfigError> {
        let kind = self.controller.unwrap_or_default();
        let (arms, controller) = (self.arms(), kind.name());
        let objective = self.objective.unwrap_or_default();
        if objective != ObjectiveKind::Quality && kind != ControllerKind::Mpc {
            let objective = objective.name();
            return Err(ConfigError::ObjectiveOfAnother { objective, controller });
        }
        let (run, config) = match kind {
            ControllerKind::Fixed => (self.to_fixed_run(bundle, point)?, MpcConfig::default()),
            _ if !arms.contains(&ArmKind::Split) => return Err(ConfigError::NoSplit(names(arms))),
            _ => (point.into(), self.to_mpc_config()?),
        };
        let arms =
            Arms { image: arms.contains(&ArmKind::Image), local: arms.contains(&ArmKind::Local) };
        let failed = |source| ConfigError::Ladder { controller, source };
        let filter = self.filter_recall.map(|recall| Filter::of_bundle(bundle, recall));
        let filter = filter.transpose().map_err(failed)?;
        let ladder = || {
            let ladder = Ladder::of_bundle(bundle, arms)?;
            Ok(Arc::new(match &filter {
                Some(filter) => ladder.filtered(filter),
                None => ladder,
            }))
        };
        let built = kind.with(run, config).build(ladder).map_err(failed)?;
        Ok(match filter {
            Some(filter) => Box::new(Filtered::new(filter, built)),
            None => built,
        })
    }

    /// Positions of the labels that the filter looks for; `None` for all.
    pub fn to_filter_classes(&self, labels: &[String]) -> Result<Option<Vec<usize>>, ConfigError> {
        let find = |name: &String| {
            let at = labels.iter().position(|label| label == name);
            at.ok_or_else(|| {
                let (class, labels) = (name.clone(), labels.join(", "));
                ConfigError::FilterClass { class, labels }
            })
        };
        self.filter_classes.as_ref().map(|names| names.iter().map(find).collect()).transpose()
    }

    /// What the fixed controller runs.
    fn to_fixed_run(&self, bundle: &Bundle, point: OperatingPoint) -> Result<Run, ConfigError> {
        Ok(match self.arms() {
            [ArmKind::Split] => point.into(),
            [ArmKind::Image] => {
                let image = self.to_image_spec(&bundle.manifest().input)?;
                let exit = self.image_exit.unwrap_or(false).then_some((point.split, point.width));
                Run::Image(ImageRun { image, exit })
            }
            [ArmKind::Local] => Run::Local,
            arms => return Err(ConfigError::OneArm(names(arms))),
        })
    }

    /// How a picture is compressed for a network with `input`.
    fn to_image_spec(&self, input: &InputSpec) -> Result<ImageSpec, ConfigError> {
        let longer = input.width.max(input.height);
        let most = u64::from(MAX_IMAGE_SCALE * longer);
        let side = within("image_side", self.image_side.unwrap_or(longer).into(), 1, most)?;
        let quality = within("image_quality", self.image_quality.unwrap_or(50).into(), 1, 100)?;
        let format = self.image_format.unwrap_or(ImageFormat::Webp);
        if !has_image_format(format) {
            return Err(ConfigError::ImageFormat(format));
        }
        Ok(ImageSpec { format, side: side as u32, quality: quality as u8 })
    }
}

fn names(arms: &[ArmKind]) -> String {
    let names: Vec<&str> = arms.iter().map(|arm| arm.name()).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        toml::from_str(text).expect("options")
    }

    #[test]
    fn a_picture_s_codec_is_checked_against_the_network_s_input() {
        let input = InputSpec::new(160, 90);
        let spec = |text: &str| options(text).to_image_spec(&input).map(|spec| spec.to_string());
        assert_eq!(spec("").expect("defaults"), "webp/160/q50");
        let all = "image_format = 'jpeg'\nimage_quality = 7\nimage_side = 640";
        assert_eq!(spec(all).expect("within range"), "jpeg/640/q7");
        for bad in
            ["image_side = 641", "image_side = 0", "image_quality = 0", "image_quality = 101"]
        {
            assert!(spec(bad).is_err(), "{bad}");
        }
        if cfg!(not(feature = "avif")) {
            let error = spec("image_format = 'avif'").expect_err("not built in");
            assert_eq!(error.to_string(), "image_format: this program was built without avif");
        }
        assert!(toml::from_str::<Options>("image_format = 'png'").is_err());
        assert!(toml::from_str::<Options>("arm = ['exit']").is_err());
    }
}
