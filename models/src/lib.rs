//! The bundle: a trained network that was cut for two machines, and how to run it.
//!
//! A [`Bundle`] is a folder whose manifest fixes every file by its SHA-256. From it come the
//! device's [`Head`] and the server's [`Tail`], both prepared once for all operating points by an
//! [`Engine`], and one feature codec for each of them; the full network, [`Full`], answers
//! pictures that were compressed by an [`ImageSpec`] instead. Around the graphs: [`Picture`] and
//! [`Preprocessor`] before, [`softmax`] and [`top_k`] after, and a [`Profile`] of how long it all
//! takes on this machine. With the feature `shell`, a [`WholeModel`] is cut and [`Import`]ed as a
//! bundle, and a [`Recorder`] writes down what one machine computes, for [`replay`] on another.
//!
//! This crate does no networking and reads a clock only to measure times. It starts threads in
//! [`on_all_cores`] and [`on_threads`] alone, which end before these return: there, and to [`replay`].
//!
//! Read [`Bundle`] and [`Head`] first; the format is in `BUNDLE.md` beside this crate.

#![forbid(unsafe_code)]

mod answer;
#[cfg(feature = "avif")]
mod avif;
mod bundle;
#[cfg(feature = "shell")]
mod calibrate;
mod classify;
mod cores;
#[cfg(feature = "shell")]
mod cut;
mod detect;
#[cfg(feature = "shell")]
mod eigen;
mod engine;
mod golden;
mod head;
mod image_codec;
#[cfg(feature = "shell")]
mod import;
mod manifest;
#[cfg(feature = "shell")]
mod network;
#[cfg(feature = "ort")]
mod onnxruntime;
mod outcomes;
mod photo;
mod picture;
mod placement;
mod prepared;
mod preprocess;
mod profile;
mod quality;
#[cfg(feature = "shell")]
mod record;
mod tail;
mod taps;
#[cfg(feature = "tract")]
mod tract;
#[cfg(feature = "truth")]
mod truth;
mod verify;
mod yuyv;

pub use answer::{
    Answer, AnswerError, ClassMap, Decoders, DecodersError, Scores, TOP_CLASSES, UnusableAnswer,
    ValueMap, Wanted,
};
pub use bundle::{Bundle, BundleError, MANIFEST, PointError, PointName, Rung};
pub use classify::{likeliest, softmax, top_k};
pub use cores::{on_all_cores, on_threads};
#[cfg(feature = "shell")]
pub use cut::{
    Cut, CutError, Layout, Linear, Mix, ModelOptions, ModelOutput, Parts, Probabilities, WholeModel,
};
pub use detect::{
    Activation, Background, BoxForm, BoxesDecodeError, BoxesDecoder, BoxesError, BoxesLayout,
    BoxesSpec, Column, Detection, MAX_BOXES, MAX_CANDIDATES, PriorLevel,
};
pub use engine::{Engine, EngineError, Graph, Tensor, TensorView};
#[cfg(feature = "tract")]
pub use engine::{EngineKind, EngineKindError, OrtProvider};
pub use golden::{Golden, GoldenError};
pub use head::{Head, HeadOutput};
#[cfg(feature = "image-encoders")]
pub use image_codec::{ImageEncodeError, ImageEncoder};
pub use image_codec::{
    ImageSpec, ImageSpecError, MAX_IMAGE_SCALE, View, decode_image, has_image_format,
    image_formats, max_image_pixels,
};
#[cfg(feature = "shell")]
pub use import::{Import, ImportEngines, ImportError, OtherHead, Rotate};
pub use manifest::{
    ChannelOrder, DecoderSpec, FORMAT, FileSpec, Fit, FullSpec, InputSpec, MAX_FILE_BYTES,
    Manifest, ManifestError, OutputSpec, PointSpec, QuantiserSpec, SplitSpec, Task, WidthSpec,
};
#[cfg(feature = "ort")]
pub use onnxruntime::{OnnxRuntime, OnnxRuntimeError};
pub use outcomes::{OUTCOMES, Outcome, Outcomes, OutcomesError, PointOutcomes, RecordedPoint};
pub use photo::{MAX_PICTURE_BYTES, Photo, PhotoError, find_photos};
pub use picture::{MAX_PIXELS, Picture, PictureError};
pub use placement::Placement;
pub use prepared::{LoadError, RunError};
pub use preprocess::Preprocessor;
pub use profile::{EncodeTiming, HeadTiming, Profile, ProfileError, Timing};
pub use quality::{
    AveragePrecision, MeanAveragePrecision, MeanIou, QualityError, TrueBox, TrueBoxes, f1, iou,
    within_ratio,
};
#[cfg(feature = "shell")]
pub use record::{RecordError, Recorder, ReplayError, Replayed, replay};
pub use tail::{Full, Outputs, Tail, TailItem};
#[cfg(feature = "tract")]
pub use tract::{PlainTract, Tract};
#[cfg(feature = "truth")]
pub use truth::{MAX_TRUE_BOXES, MAX_TRUTH_BYTES, Truth, TruthError};
pub use verify::{GoldenProblem, Verified, VerifyError, verify};
