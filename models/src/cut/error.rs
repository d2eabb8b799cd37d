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
    #[error("input {name:?} is {found}, expected f32 [N, 3, height, width]")]
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
    #[error("node {node:?} is {op}: graphs with control flow cannot be cut")]
    ControlFlow {
        /// The node, by its first output.
        node: String,
        /// Its operator.
        op: String,
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
    /// An output that is no row of logits.
    #[error("output {name:?} is {found}, expected f32 [N, classes]")]
    Output {
        /// The output.
        name: String,
        /// Its type and shape.
        found: String,
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
