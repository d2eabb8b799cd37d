//! What a filter saves where nothing is in a picture, and what it misses.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use isthmus_head_client::Filter;
use isthmus_models::{
    Head, OUTCOMES, Outcomes, Photo, Picture, Preprocessor, find_photos, on_all_cores,
};
use isthmus_proto::OperatingPoint;

use super::Measurement;
use super::detection::not_of_boxes;
use super::lab::Lab;
use super::sent;

/// The recall that the filter is asked for, as a client's is by default.
const RECALL: f64 = 0.99;

pub(super) fn recall(lab: &Lab) -> anyhow::Result<Measurement> {
    measured(lab, |filtered| {
        if filtered.objects.count == 0 {
            return Measurement::skipped("no picture has an object");
        }
        let passed = filtered.objects.count - filtered.objects.filtered;
        let detail = format!("{passed} of {} with objects are sent", filtered.objects.count);
        Measurement::of(passed as f64 / filtered.objects.count as f64, filtered.words(&detail))
    })
}

pub(super) fn empty(lab: &Lab) -> anyhow::Result<Measurement> {
    measured(lab, |filtered| {
        let Group { count, filtered: stopped, .. } = filtered.empty;
        if count == 0 {
            return Measurement::skipped("no picture is empty: --empty DIR has some");
        }
        let detail = format!("{stopped} of {count} empty ones are not sent");
        Measurement::of(stopped as f64 / count as f64, filtered.words(&detail))
    })
}

pub(super) fn saved_bytes(lab: &Lab) -> anyhow::Result<Measurement> {
    measured(lab, |filtered| {
        let Filtered { objects, empty, .. } = filtered;
        let (all, saved) = (objects.bytes + empty.bytes, objects.saved + empty.saved);
        let detail = format!(
            "{saved} of {all} bytes of all pictures, {} of {} of the {} empty ones",
            empty.saved, empty.bytes, empty.count
        );
        Measurement::of(saved as f64 / all.max(1) as f64, filtered.words(&detail))
    })
}

fn measured(lab: &Lab, figure: impl Fn(&Filtered) -> Measurement) -> anyhow::Result<Measurement> {
    if let Some(reason) = not_of_boxes(lab) {
        return Ok(reason);
    }
    Ok(match &*lab.once(Filtered::measure)? {
        Ok(filtered) => figure(filtered),
        Err(reason) => Measurement::skipped(reason),
    })
}

/// Pictures of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    count: usize,
    filtered: usize,
    /// What they would be sent as.
    bytes: u64,
    /// What is not sent of that.
    saved: u64,
}

/// What the filter does with pictures.
struct Filtered {
    objects: Group,
    empty: Group,
    point: String,
    threshold: f32,
}

impl Filtered {
    /// An error in words where the bundle gives no filter.
    fn measure(lab: &Lab) -> anyhow::Result<Result<Filtered, String>> {
        let bundle = lab.bundle();
        let outcomes = match bundle.manifest().files.contains_key(OUTCOMES) {
            true => Some(Outcomes::unpack(&bundle.read(OUTCOMES)?).context(OUTCOMES)?),
            false => None,
        };
        let filter = match Filter::of_outcomes(bundle, outcomes.as_ref(), RECALL) {
            Ok(filter) => filter,
            Err(reason) => return Ok(Err(reason.to_string())),
        };
        let point = bundle.default_point();
        let name = bundle.describe_point(point).to_string();
        let Some(threshold) = filter.threshold((point.split, point.width)) else {
            return Ok(Err(format!("the record has no exit of the head of {name}")));
        };
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        let exit = Exit { head: lab.head()?, preprocessor, point };
        let mut all =
            lab.each_boxed(|picture, truth| Ok((truth.boxes.is_empty(), exit.asked(picture)?)))?;
        if let Some(folder) = lab.empty() {
            let photos = find_photos(folder, &[])?;
            all.extend(on_all_cores(photos.iter(), |photo: &Photo| {
                let picture = photo.read();
                let picture =
                    picture.map_err(|error| anyhow!("{}: {error}", photo.path.display()))?;
                anyhow::Ok((true, exit.asked(&picture)?))
            })?);
        }
        let mut filtered =
            Filtered { objects: Group::default(), empty: Group::default(), point: name, threshold };
        for (is_empty, (confidence, bytes)) in all {
            let group = if is_empty { &mut filtered.empty } else { &mut filtered.objects };
            let stops = confidence.is_some_and(|confidence| confidence >= threshold);
            group.count += 1;
            group.bytes += bytes;
            group.filtered += usize::from(stops);
            group.saved += if stops { bytes } else { 0 };
        }
        Ok(Ok(filtered))
    }

    fn words(&self, detail: &str) -> String {
        let Filtered { point, threshold, .. } = self;
        format!(
            "{detail}, at {point}; the exit is believed from {threshold:.4}, by the bundle's record for \
             a recall of {RECALL}"
        )
    }
}

/// The head whose exit the filter asks.
struct Exit {
    head: Arc<Head>,
    preprocessor: Preprocessor,
    point: OperatingPoint,
}

impl Exit {
    /// How sure it is that nothing is in a picture, and the bytes that are sent where it is not.
    fn asked(&self, picture: &Picture) -> anyhow::Result<(Option<f32>, u64)> {
        let bundle = self.head.bundle();
        let mut input = Vec::new();
        self.preprocessor.run(picture, &mut input);
        let output = self.head.run(self.point.split, self.point.width, &input)?;
        let answer = output.exit.and_then(|logits| bundle.decoders().exit_answer(logits, None));
        let (_, bytes) = sent::features(bundle, self.point, &output.latents)?;
        Ok((answer.map(|answer| answer.1), bytes as u64))
    }
}
