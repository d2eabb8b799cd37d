//! `[decoders.boxes]` of a manifest: how a detector's outputs become boxes.

use serde::{Deserialize, Serialize};

use super::error::{BoxesError, value};

/// Most boxes that an answer may hold.
pub const MAX_BOXES: u32 = 1000;

/// Most boxes that are compared with each other.
pub const MAX_CANDIDATES: u32 = 8192;

/// Most levels of a pyramid, and most priors of a place.
const MAX_LEVELS: usize = 32;

/// Greatest side of an input or a grid, and greatest stride (pixels).
pub(super) const MAX_SIDE: u32 = 4096;

/// How a detector's outputs become boxes.
///
/// ```
/// use isthmus_models::{BoxesLayout, BoxesSpec};
///
/// let text = "layout = 'yolov8'\nconfidence = 0.25\niou = 0.7";
/// let spec: BoxesSpec = toml::from_str(text)?;
/// assert!(matches!(spec.layout, BoxesLayout::Yolov8 { .. }));
/// assert_eq!((spec.limit, spec.candidates, spec.agnostic), (300, 1000, false));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct BoxesSpec {
    /// What the tensors mean, with the layout's own parameters.
    #[serde(flatten)]
    pub layout: BoxesLayout,
    /// Names of the outputs that the layout reads, in its order; empty: all outputs, as they come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<String>,
    /// Boxes that score less are in no answer, 0..=1.
    pub confidence: f32,
    /// Of two boxes that overlap by more (intersection over union, 0..=1) only the better one
    /// stays. `None`, which the layouts `detr`, `centernet` and `corners` allow, keeps both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iou: Option<f32>,
    /// Most boxes of an answer, 1 to [`MAX_BOXES`]; 300 where it is left out.
    pub limit: u32,
    /// Best boxes that are compared with each other, 1 to [`MAX_CANDIDATES`]; 1,000 where it is
    /// left out. It bounds the time that any output can cost.
    pub candidates: u32,
    /// Whether boxes of different classes suppress each other, too.
    pub agnostic: bool,
    /// Whether a place gives one box for every class that scores enough, or one for its likeliest
    /// class. Left out, as the layout's own programs do: of `yolox`, `yolov5`, `yolov8` and
    /// `fastestdet` the likeliest, of others every.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_class: Option<bool>,
}

/// What the tensors of a detector mean. Shapes are without the batch; K is the number of classes,
/// A of places. Two dimensions `[A, n]` may also lie as `[n, A]`. Pixels are those of the
/// network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "lowercase", deny_unknown_fields)]
pub enum BoxesLayout {
    /// One tensor `[A, 5 + K]` over the grids of `strides`, one after the other and each row by
    /// row: centre, size, objectness, classes. The centre is (value + cell) · stride, the size
    /// exp(value) · stride, the score objectness · class (YOLOX, arXiv 2107.08430).
    Yolox {
        /// Pixels between two cells of each grid.
        #[serde(default = "three_strides")]
        strides: Vec<u32>,
        /// What is applied to objectness and classes: `none` or `sigmoid`.
        #[serde(default)]
        activation: Activation,
    },
    /// One tensor `[A, 5 + K]`: centre and size in pixels, objectness, classes; the score is
    /// objectness · class. YOLOv5 and YOLOv7 are exported like this, YOLOX where it decodes.
    Yolov5 {
        /// What is applied to objectness and classes: `none` or `sigmoid`.
        #[serde(default)]
        activation: Activation,
    },
    /// One tensor `[4 + K, A]`: centre and size in pixels, then the classes' scores. YOLOv8, YOLO11
    /// and others without objectness are exported like this.
    Yolov8 {
        /// What is applied to the classes.
        #[serde(default)]
        activation: Activation,
    },
    /// Scores `[n, K]` and distances `[n, 4 · bins]` over the grids of `strides`: one tensor of
    /// scores a level and then one of distances a level, or one of each over all levels, or a
    /// single one `[A, K + 4 · bins]`. The four sides' distances from the cell's centre (left,
    /// top, right, bottom) are Σ i · softmax(values)ᵢ · stride (Generalized Focal Loss, arXiv
    /// 2006.04388; NanoDet, PicoDet).
    Distribution {
        /// Pixels between two cells of each grid; a grid has ⌈side / stride⌉ cells.
        strides: Vec<u32>,
        /// Values of each side's distribution.
        bins: u32,
        /// Where a cell's centre lies, in cells: 0.5, or 0 for NanoDet-Plus.
        #[serde(default = "half")]
        offset: f32,
        /// What is applied to the scores.
        #[serde(default)]
        activation: Activation,
    },
    /// Scores `[A, K]`, or `[A, K + 1]` with a background, and boxes `[A, 4]`, which are corners,
    /// centres and sizes, or offsets from priors (SSD, arXiv 1512.02325).
    Ssd {
        /// What the four values are.
        boxes: BoxForm,
        /// Whether corners or centres are parts of the input's sides, not pixels.
        #[serde(default = "yes")]
        normalised: bool,
        /// Which column of the scores is no class.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        background: Option<Background>,
        /// What is applied to the scores.
        #[serde(default)]
        activation: Activation,
        /// Factors of the centres' offsets, and of the sizes' before the exponential. Others write
        /// the reciprocals, 10 and 5.
        #[serde(default = "usual_variances")]
        variances: [f32; 2],
        /// Priors of each level; without any, a third tensor `[A, 4]` holds their centres and
        /// sizes as parts of the input's sides. Only for `offsets`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        priors: Vec<PriorLevel>,
        /// Whether the priors' centres and sizes end at the input's sides.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        clip_priors: bool,
    },
    /// Logits `[Q, K + 1]` for a softmax whose last class is none, or `[Q, K]` for a sigmoid, and
    /// boxes `[Q, 4]`: centre and size as parts of the input's sides (DETR, arXiv 2005.12872).
    Detr {
        /// `softmax` or `sigmoid`.
        #[serde(default = "softmax")]
        activation: Activation,
    },
    /// One tensor `[5 + K, h, w]`: objectness, tanh⁻¹ of the centre's offset in cells, logits of
    /// the size as parts of the input's sides, classes. The score is objectness^0.6 · class^0.4
    /// (FastestDet).
    Fastestdet {},
    /// Heatmap `[K, h, w]`, size `[2, h, w]` and offset `[2, h, w]` in cells. A box is where the
    /// heatmap is greatest among 3 × 3 cells (Objects as Points, arXiv 1904.07850).
    Centernet {
        /// Pixels between two cells.
        #[serde(default = "four")]
        stride: u32,
        /// What is applied to the heatmap: `none` or `sigmoid`.
        #[serde(default)]
        activation: Activation,
    },
    /// Boxes that were suppressed in the graph: one tensor `[A, n]` of the columns x0, y0, x1, y1,
    /// score, class, or three: boxes `[A, 4]`, scores `[A]`, classes `[A]`.
    Corners {
        /// What the columns of the first tensor are; left out, the order above.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        columns: Vec<Column>,
        /// Whether corners are parts of the input's sides, not pixels.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        normalised: bool,
        /// The network's number of the first label: 1 where its 0 is the background.
        #[serde(default, skip_serializing_if = "is_zero")]
        first_class: u16,
    },
}

/// What is applied to a score before it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Nothing: the network gives 0..=1.
    #[default]
    None,
    /// 1 / (1 + exp(−value)).
    Sigmoid,
    /// A softmax over a place's scores, the background's with them.
    Softmax,
}

/// What four values say of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxForm {
    /// x0, y0, x1, y1.
    Corners,
    /// Centre x, centre y, width, height.
    Centres,
    /// Offsets from a prior: of the centre in the prior's sides, and the logarithm of the size's
    /// ratio, both divided by the variances.
    Offsets,
}

/// Which column of the scores is no class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Background {
    /// Before the first class.
    First,
    /// Behind the last class.
    Last,
}

/// Priors of one level of a pyramid: the same boxes around each cell of a grid, row by row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorLevel {
    /// Pixels between two cells, of which there are ⌈side / stride⌉. Either this or `grid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<u32>,
    /// Columns and rows of cells, which share the input's sides evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<[u32; 2]>,
    /// Width and height of each prior of a cell (pixels).
    pub sizes: Vec<[f32; 2]>,
}

/// What a column of boxes says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Column {
    /// Left side.
    X0,
    /// Upper side.
    Y0,
    /// Right side.
    X1,
    /// Lower side.
    Y1,
    /// Score, 0..=1.
    Score,
    /// Class, a whole number.
    Class,
    /// Nothing that is read.
    Unused,
}

/// What a layout does not say, as it stands in a manifest.
#[derive(Deserialize)]
struct Common {
    #[serde(default)]
    tensors: Vec<String>,
    confidence: f32,
    iou: Option<f32>,
    #[serde(default = "three_hundred")]
    limit: u32,
    #[serde(default = "thousand")]
    candidates: u32,
    #[serde(default)]
    agnostic: bool,
    every_class: Option<bool>,
}

/// Keys of [`Common`].
const COMMON: [&str; 7] =
    ["tensors", "confidence", "iou", "limit", "candidates", "agnostic", "every_class"];

/// A flattened enum cannot refuse unknown keys, so that the two halves are read one by one.
impl TryFrom<toml::Table> for BoxesSpec {
    type Error = toml::de::Error;

    fn try_from(table: toml::Table) -> Result<Self, Self::Error> {
        let (common, layout): (toml::Table, toml::Table) =
            table.into_iter().partition(|(key, _)| COMMON.contains(&key.as_str()));
        let layout = layout.try_into()?;
        let Common { tensors, confidence, iou, limit, candidates, agnostic, every_class } =
            common.try_into()?;
        Ok(BoxesSpec { layout, tensors, confidence, iou, limit, candidates, agnostic, every_class })
    }
}

impl BoxesSpec {
    /// Whether every value can be meant; [`BoxesDecoder::new`](super::BoxesDecoder::new) asks it,
    /// too. The key in an error is one of `[decoders.boxes]`.
    pub fn check(&self) -> Result<(), BoxesError> {
        check_fraction("confidence", self.confidence)?;
        match (self.iou, &self.layout) {
            (Some(iou), _) => check_fraction("iou", iou)?,
            (
                None,
                BoxesLayout::Detr { .. }
                | BoxesLayout::Centernet { .. }
                | BoxesLayout::Corners { .. },
            ) => {}
            (None, _) => {
                return Err(value("iou", "is needed: this layout gives many boxes an object"));
            }
        }
        check_whole("limit", self.limit, MAX_BOXES)?;
        check_whole("candidates", self.candidates, MAX_CANDIDATES)?;
        self.layout.check()
    }

    /// Whether a place gives a box for every class that scores enough.
    pub(super) fn gives_every_class(&self) -> bool {
        let usual = !matches!(
            self.layout,
            BoxesLayout::Yolox { .. }
                | BoxesLayout::Yolov5 { .. }
                | BoxesLayout::Yolov8 { .. }
                | BoxesLayout::Fastestdet {}
        );
        self.every_class.unwrap_or(usual)
    }
}

impl BoxesLayout {
    fn check(&self) -> Result<(), BoxesError> {
        match self {
            BoxesLayout::Yolox { strides, activation } => {
                check_strides(strides)?;
                check_no_softmax(*activation)
            }
            BoxesLayout::Yolov5 { activation } => check_no_softmax(*activation),
            BoxesLayout::Centernet { stride, activation } => {
                check_whole("stride", *stride, MAX_SIDE)?;
                check_no_softmax(*activation)
            }
            BoxesLayout::Distribution { strides, bins, offset, .. } => {
                check_strides(strides)?;
                check_fraction("offset", *offset)?;
                match bins {
                    2..=256 => Ok(()),
                    _ => Err(value("bins", format!("is {bins}; 2 to 256 are understood"))),
                }
            }
            BoxesLayout::Ssd { boxes, variances, priors, .. } => {
                if *boxes != BoxForm::Offsets && !priors.is_empty() {
                    return Err(value("priors", "are only for boxes = \"offsets\""));
                }
                check_positive("variances", variances)?;
                check_count("priors", priors.len())?;
                priors.iter().try_for_each(PriorLevel::check)
            }
            BoxesLayout::Detr { activation: Activation::None } => {
                Err(value("activation", "must be \"softmax\" or \"sigmoid\""))
            }
            BoxesLayout::Yolov8 { .. }
            | BoxesLayout::Detr { .. }
            | BoxesLayout::Fastestdet {}
            | BoxesLayout::Corners { .. } => Ok(()),
        }
    }
}

impl PriorLevel {
    fn check(&self) -> Result<(), BoxesError> {
        match (self.stride, self.grid) {
            (Some(stride), None) => check_whole("priors.stride", stride, MAX_SIDE)?,
            (None, Some(grid)) => {
                for side in grid {
                    check_whole("priors.grid", side, MAX_SIDE)?;
                }
            }
            _ => return Err(value("priors", "need either `stride` or `grid`")),
        }
        check_count("priors.sizes", self.sizes.len())?;
        self.sizes.iter().try_for_each(|size| check_positive("priors.sizes", size))
    }
}

fn check_strides(strides: &[u32]) -> Result<(), BoxesError> {
    if strides.is_empty() {
        return Err(value("strides", "needs at least one"));
    }
    check_count("strides", strides.len())?;
    strides.iter().try_for_each(|&stride| check_whole("strides", stride, MAX_SIDE))
}

fn check_no_softmax(activation: Activation) -> Result<(), BoxesError> {
    match activation {
        Activation::Softmax => Err(value("activation", "must be \"none\" or \"sigmoid\"")),
        Activation::None | Activation::Sigmoid => Ok(()),
    }
}

fn check_count(key: &str, count: usize) -> Result<(), BoxesError> {
    match count {
        0..=MAX_LEVELS => Ok(()),
        _ => Err(value(key, format!("has {count} entries; at most {MAX_LEVELS} are understood"))),
    }
}

fn check_whole(key: &str, found: u32, most: u32) -> Result<(), BoxesError> {
    match (1..=most).contains(&found) {
        true => Ok(()),
        false => Err(value(key, format!("is {found}; 1 to {most} are understood"))),
    }
}

fn check_fraction(key: &str, found: f32) -> Result<(), BoxesError> {
    match (0.0..=1.0).contains(&found) {
        true => Ok(()),
        false => Err(value(key, format!("is {found}; must be 0 to 1"))),
    }
}

fn check_positive(key: &str, found: &[f32]) -> Result<(), BoxesError> {
    match found.iter().find(|found| !(found.is_finite() && **found > 0.0)) {
        None => Ok(()),
        Some(bad) => Err(value(key, format!("{bad} is there; must be above 0 and finite"))),
    }
}

fn three_strides() -> Vec<u32> {
    vec![8, 16, 32]
}

fn half() -> f32 {
    0.5
}

fn yes() -> bool {
    true
}

fn usual_variances() -> [f32; 2] {
    [0.1, 0.2]
}

fn softmax() -> Activation {
    Activation::Softmax
}

fn four() -> u32 {
    4
}

fn three_hundred() -> u32 {
    300
}

fn thousand() -> u32 {
    1000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}
