//! Why a network cannot be cut.

/// Why a model cannot be cut, or not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// Bytes that are no ONNX model.
    #[error("not an ONNX model: {0}")]
    NotOnnx(String),
    /// Weights in another file.
    #[error(
        "the weights of {tensor:?} are in another file; save the model as one file \
         (onnx.save(model, path, save_as_external_data=False))"
    )]
    ExternalData {
        /// The first such tensor.
        tensor: String,
    },
    /// More or fewer inputs, or outputs, than one.
    #[error("expected one {what}, found {}: {}", found.len(), found.join(", "))]
    NotOne {
        /// `input` or `output`.
        what: &'static str,
        /// Those there are.
        found: Vec<String>,
    },
    /// An input that is no picture.
    #[error(
        "input {name:?} is {found}, expected f32 [N, 3, height, width] with N free or 1: what else a \
         network takes (bytes, channels last, frames of a video) goes before the picture's values as \
         layers of the network"
    )]
    Input {
        /// The input.
        name: String,
        /// Its type and shape.
        found: String,
    },
    /// An input whose height or width is free, and no size given.
    #[error("input {name:?} is {found}: its size must be given (--size WIDTHxHEIGHT)")]
    FreeSize {
        /// The input.
        name: String,
        /// Its shape.
        found: String,
    },
    /// A size that the input does not have.
    #[error("input {name:?} is {found}, it cannot be run at {width}x{height}")]
    Size {
        /// The input.
        name: String,
        /// Its shape.
        found: String,
        /// Width asked for (pixels).
        width: u32,
        /// Height asked for (pixels).
        height: u32,
    },
    /// A node that decides at run time what runs.
    #[error(
        "node {node:?} is {op}, control flow, which cannot be cut; what is in front of it can, if its \
         outputs are named: --outputs {}", before.join(",")
    )]
    ControlFlow {
        /// The node, by its first output.
        node: String,
        /// Its operator.
        op: String,
        /// The last layers with weights before it.
        before: Vec<String>,
    },
    /// A function that has no end, or calls too many others.
    #[error("node {node:?} calls {function}, a function of the file that calls others without end")]
    Functions {
        /// The node, by its first output.
        node: String,
        /// The function.
        function: String,
    },
    /// A function in another version of ONNX's operators than the graph.
    #[error(
        "function {function} is written in version {version} of the operators, the graph in version \
         {graph}; export the network with one version"
    )]
    FunctionVersion {
        /// The function.
        function: String,
        /// Its version.
        version: i64,
        /// The graph's.
        graph: i64,
    },
    /// A tensor that is used before a node makes it, or that none makes.
    #[error("node {node:?} uses {tensor:?}, which no node before it makes")]
    Undefined {
        /// The node, by its first output.
        node: String,
        /// The tensor.
        tensor: String,
    },
    /// Shapes cannot be inferred.
    #[error("the shapes of the graph cannot be inferred: {0}")]
    Analysis(String),
    /// A size at which the graph's shapes contradict each other, where it leaves the size free.
    #[error(
        "the network cannot be run at {width}x{height}: {reason}; it can at {}x{}", near[0], near[1]
    )]
    Contradiction {
        /// Width asked for (pixels).
        width: u32,
        /// Height asked for (pixels).
        height: u32,
        /// What does not fit.
        reason: String,
        /// The nearest width and height that fit.
        near: [u32; 2],
    },
    /// An output that is no row of logits.
    #[error("output {name:?} is {found}, expected f32 [N, classes] of a classifier")]
    Output {
        /// The output.
        name: String,
        /// Its shape.
        found: String,
    },
    /// An output of no fixed shape, or one without pictures.
    #[error(
        "output {name:?} {problem}; name outputs in front of it instead: --outputs {}",
        before.join(",")
    )]
    OpenOutput {
        /// The output.
        name: String,
        /// What is wrong with its shape.
        problem: String,
        /// The last layers with weights before it.
        before: Vec<String>,
    },
    /// A graph that the engine cannot run with several pictures at once.
    #[error(
        "the network does not run with {pictures} pictures at once: {reason}; export it with the number \
         of pictures left free"
    )]
    Batch {
        /// Pictures.
        pictures: usize,
        /// The engine's own words.
        reason: String,
    },
    /// A node that computes something else of a picture among others than of the picture alone.
    #[error(
        "of {pictures} pictures at once {node:?} ({op}) computes something else than of each alone: \
         {problem}; export the network with the number of pictures left free"
    )]
    NotAlone {
        /// Pictures.
        pictures: usize,
        /// The node, by its first output.
        node: String,
        /// Its operator.
        op: String,
        /// What differs.
        problem: String,
    },
    /// Classes that are not there.
    #[error("unknown output {index}; expected 0 to {last}")]
    Class {
        /// Asked for.
        index: usize,
        /// The last there is.
        last: usize,
    },
    /// A name that no tensor has.
    #[error("unknown tensor {tensor:?}; the cuts of the most similar names are {}", near.join(", "))]
    Unknown {
        /// Asked for.
        tensor: String,
        /// The cuts of the most similar names.
        near: Vec<String>,
    },
    /// A tensor that does not separate the input from the output, or that no bundle can carry.
    #[error(
        "cannot cut at {tensor:?}: {reason}; the cuts around it are {}", around.join(" and ")
    )]
    NoCut {
        /// Asked for.
        tensor: String,
        /// Why not.
        reason: &'static str,
        /// The last cut before it and the first behind it, where there are.
        around: Vec<String>,
    },
}
