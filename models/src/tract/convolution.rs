//! Direct convolutions, which are faster than tract's products of matrices where an output is a sum of
//! few terms.

use std::array;
use std::slice::{self, ChunksMut};

use pulp::bytemuck::{cast_slice, pod_read_unaligned};
use pulp::{Arch, Simd, WithSimd};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_core::ops::math::Max;
use tract_onnx::tract_core::ops::nn::DataFormat;

/// Terms of an output value, at most: with more, it is the weights that do not stay in the cache,
/// and to go through them once for each tile costs more than it saves.
const TERMS: usize = 512;
/// Vectors of neighbouring pixels that are summed at once.
const VECTORS: usize = 3;
/// Channels that are summed at once, at most.
const CHANNELS: usize = 8;

/// How many channels this machine's registers hold the sums of, for `VECTORS` vectors of pixels
/// each, beside what is being multiplied.
pub(super) fn channels_at_once() -> usize {
    struct Registers;
    impl WithSimd for Registers {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::REGISTER_COUNT
        }
    }
    // A weight fills a register. On Arm it may be a lane of one, and compilers load them ahead.
    let weights = if cfg!(target_arch = "aarch64") { 8 } else { 1 };
    ((Arch::new().dispatch(Registers) - VECTORS - weights) / VECTORS).clamp(1, CHANNELS)
}

/// Puts a [`Direct`] in the place of each convolution that one computes faster, and of the ReLU
/// behind it; `at_once` channels are summed at once, at most.
pub(super) fn direct_convolutions(model: &mut TypedModel, at_once: usize) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let Some(conv) = model.node(id).op_as::<Conv>() else { continue };
        let relu = relu_behind(model, id)?;
        let direct = Direct::of(conv, &model.node_input_facts(id)?, relu.is_some(), at_once)?;
        let Some(direct) = direct else { continue };
        let last = relu.unwrap_or(id);
        let mut patch = TypedModelPatch::default();
        let &[input, ..] = &*model.node(id).inputs else { continue };
        let input = patch.tap_model(model, input)?;
        let output = patch.wire_node(&model.node(last).name, direct, &[input])?;
        patch.shunt_outside(model, last.into(), output[0])?;
        patch.apply(model)?;
    }
    Ok(())
}

/// The node behind node `id`, if that is the only one and a ReLU.
fn relu_behind(model: &TypedModel, id: usize) -> TractResult<Option<usize>> {
    let [successor] = &*model.node(id).outputs[0].successors else { return Ok(None) };
    let node = model.node(successor.node);
    let is_max = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Max>());
    if !is_max || model.output_outlets()?.contains(&id.into()) {
        return Ok(None);
    }
    let Some(&other) = node.inputs.iter().find(|input| input.node != id) else { return Ok(None) };
    let other = model.outlet_fact(other)?;
    let is_zero = other.uniform.as_ref().is_some_and(|it| it.is_zero().unwrap_or(false));
    // Zeros of a larger shape make more of the convolution than it is.
    let same =
        model.outlet_fact(successor.node.into())?.shape == model.outlet_fact(id.into())?.shape;
    Ok((is_zero && same).then_some(successor.node))
}

/// The extents of a convolution that a [`Direct`] can compute.
struct Geometry {
    /// Channels, height and width.
    input: [usize; 3],
    output: [usize; 3],
    /// Down and across, as the pairs below.
    kernel: [usize; 2],
    strides: [usize; 2],
    padding: [usize; 2],
}

impl Geometry {
    /// Those of `conv` over a picture of this `shape`; `None` of a convolution that is tract's to
    /// compute.
    fn of(conv: &Conv, shape: &[TDim]) -> Option<Geometry> {
        let pool = &conv.pool_spec;
        // Which extent a number of the shape is, only the data format says. Where the batch is fixed
        // at 1, tract drops its axis around convolutions between two products of matrices. Where it
        // computes channels last, it does so because that is fast.
        let (height, width) = match (pool.data_format, shape) {
            (DataFormat::NCHW, [_, _, height, width]) => (height, width),
            (DataFormat::CHW, [_, height, width]) => (height, width),
            _ => return None,
        };
        // Planes are laid out for one size.
        let (Ok(height), Ok(width)) = (height.to_usize(), width.to_usize()) else { return None };
        // One extent, or three, of a convolution over a line or a volume.
        let (&[kernel_height, kernel_width], &[down, right]) =
            (&*pool.kernel_shape, &*pool.strides())
        else {
            return None;
        };
        // In groups (depthwise, for one) every channel has few terms: nothing is gained.
        let plain = conv.kernel_fmt == KernelFormat::OIHW
            && conv.group == 1
            && conv.q_params.is_none()
            && pool.dilations().iter().all(|&dilation| dilation == 1)
            && down > 0
            && right > 0;
        // A kernel of one place is a product of matrices as it is.
        let places = kernel_height * kernel_width;
        if !plain || places <= 1 || pool.input_channels * places > TERMS {
            return None;
        }
        let [rows, columns] = &*pool.computed_padding(&[height, width]) else { return None };
        let output = [pool.output_channels, rows.convoluted, columns.convoluted];
        // Nothing comes out of a picture smaller than the kernel.
        let input = [pool.input_channels, height, width];
        let nothing = output.contains(&0) || input.contains(&0);
        (!nothing).then_some(Geometry {
            input,
            output,
            kernel: [kernel_height, kernel_width],
            strides: [down, right],
            padding: [rows.pad_before, columns.pad_before],
        })
    }

    /// Rows and columns of a plane: those of the output, and what the kernel sees beyond the last.
    fn plane(&self) -> [usize; 2] {
        let ([_, rows, columns], [height, width]) = (self.output, self.kernel);
        let [down, right] = self.strides;
        [rows + (height - 1) / down, columns + (width - 1) / right]
    }

    /// Where in the planes the values begin that the first output multiplies by each weight, in the
    /// weights' order.
    fn terms(&self) -> Vec<usize> {
        let ([channels, ..], [height, width]) = (self.input, self.kernel);
        let ([down, right], [rows, columns]) = (self.strides, self.plane());
        let term = |term: usize| {
            let (channel, place) = (term / (height * width), term % (height * width));
            let (y, x) = (place / width, place % width);
            let plane = (channel * down + y % down) * right + x % right;
            (plane * rows + y / down) * columns + x / right
        };
        (0..channels * height * width).map(term).collect()
    }
}

/// How many channels are summed at once, one block after another: as alike as possible.
fn blocks(channels: usize, at_once: usize) -> Vec<usize> {
    let count = channels.div_ceil(at_once.clamp(1, CHANNELS));
    (0..count).map(|block| (block + 1) * channels / count - block * channels / count).collect()
}

/// Weights `[channels, terms]` as `[terms, channels]` of each block.
fn interleaved(weights: &[f32], terms: usize, blocks: &[usize]) -> Vec<f32> {
    let mut result = Vec::with_capacity(weights.len());
    let mut rest = weights;
    for block in blocks {
        let (weights, behind) = rest.split_at(block * terms);
        let columns = (0..terms).flat_map(|term| weights.iter().skip(term).step_by(terms));
        result.extend(columns);
        rest = behind;
    }
    result
}

/// A convolution of f32 `[N, C, H, W]` or `[C, H, W]` with a bias, and perhaps a ReLU behind it.
///
/// tract's own copies each pixel once for each place of the kernel that sees it, into a matrix that
/// it then multiplies. Here pixels are copied once, into planes of a common width in which the
/// values that neighbouring outputs multiply by the same weight lie side by side: one plane for
/// each row and column modulo the strides. An output is a sum over `terms`, whose values begin in
/// other places and go on alike, so that vectors of them are read from where they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Direct {
    /// Channels, height and width.
    input: [usize; 3],
    output: [usize; 3],
    /// Down and across, as the pairs below.
    strides: [usize; 2],
    /// Zeros before the first row and before the first column.
    padding: [usize; 2],
    /// Rows and columns of a plane. Columns beyond the output's width give sums that nobody needs.
    plane: [usize; 2],
    /// Where the values begin that the first output multiplies by each of its weights.
    terms: Vec<usize>,
    /// Of channels that are summed at once.
    blocks: Vec<usize>,
    /// For each block, `[terms, channels]`.
    weights: Arc<Tensor>,
    /// `[channels]`.
    bias: Arc<Tensor>,
    relu: bool,
}

impl Direct {
    /// `conv` of inputs of these `facts`, if it is of this kind and small enough.
    fn of(
        conv: &Conv,
        facts: &[&TypedFact],
        relu: bool,
        at_once: usize,
    ) -> TractResult<Option<Direct>> {
        // Picture, weights and bias; a quantised convolution has more inputs.
        let &[picture, weights, bias] = facts else { return Ok(None) };
        // Tensors packed or quantised in blocks have values that cannot be read one by one.
        if facts.iter().any(|it| it.datum_type != f32::datum_type() || it.is_exotic()) {
            return Ok(None);
        }
        let Some(geometry) = Geometry::of(conv, &picture.shape) else { return Ok(None) };
        // Both are rearranged here, once.
        let (Some(weights), Some(bias)) = (&weights.konst, &bias.konst) else { return Ok(None) };
        let [channels, ..] = geometry.output;
        let terms = geometry.terms();
        if weights.len() != channels * terms.len() {
            return Ok(None);
        }
        let bias = match bias.len() {
            len if len == channels => bias.clone(),
            1 => bias.broadcast_scalar_to_shape(&[channels])?.into_arc_tensor(),
            _ => return Ok(None),
        };
        let blocks = blocks(channels, at_once);
        let weights = weights.clone().into_tensor();
        let weights = weights.try_as_plain_ram()?.as_slice::<f32>()?;
        let weights = interleaved(weights, terms.len(), &blocks);
        Ok(Some(Direct {
            plane: geometry.plane(),
            input: geometry.input,
            output: geometry.output,
            strides: geometry.strides,
            padding: geometry.padding,
            terms,
            blocks,
            weights: tensor1(&weights).into_arc_tensor(),
            bias,
            relu,
        }))
    }

    /// A shape with the extents of one output in the place of those of one input; before them stands
    /// the number of pictures, unless tract has dropped it.
    fn output_shape<D: Clone>(&self, input: &[D], extent: impl Fn(usize) -> D) -> TVec<D> {
        let pictures = input.len().saturating_sub(self.input.len());
        input[..pictures].iter().cloned().chain(self.output.map(extent)).collect()
    }

    /// Fills `planes` with those of `picture`, padding included.
    #[inline(always)]
    fn lay(&self, picture: &[f32], planes: &mut Vec<f32>) {
        let ([_, height, width], [down, right]) = (self.input, self.strides);
        let ([above, before], [rows, columns]) = (self.padding, self.plane);
        planes.clear();
        for pixels in picture.chunks_exact(height * width) {
            for phase in 0..down * right {
                let (up, left) = (phase / right, phase % right);
                let x = (left + right - before % right) % right;
                let zeros = ((x + before) / right).min(columns);
                for row in 0..rows {
                    let end = planes.len() + columns;
                    let y = (row * down + up).wrapping_sub(above);
                    if y < height {
                        planes.resize(end - columns + zeros, 0.0);
                        let from = pixels[y * width..][..width].get(x..).unwrap_or_default();
                        extend_by_step(planes, from, right, columns - zeros);
                    }
                    planes.resize(end, 0.0);
                }
            }
        }
    }
}

/// Adds every `step`-th of `pixels` to a plane, at most so many.
#[inline(always)]
fn extend_by_step(planes: &mut Vec<f32>, pixels: &[f32], step: usize, most: usize) {
    match step {
        1 => planes.extend_from_slice(&pixels[..pixels.len().min(most)]),
        2 => {
            // Pairs, as vectors are shuffled.
            let (pairs, last) = pixels.as_chunks::<2>();
            planes.extend(pairs.iter().take(most).map(|pair| pair[0]));
            planes.extend(last.iter().take(most.saturating_sub(pairs.len())));
        }
        _ => planes.extend(pixels.iter().step_by(step).take(most)),
    }
}

/// A [`Direct`] of some pictures, `[N, C, H, W]` or one `[C, H, W]`, and where its `result` belongs.
struct Pass<'a> {
    direct: &'a Direct,
    pictures: &'a [f32],
    weights: &'a [f32],
    bias: &'a [f32],
    result: &'a mut [f32],
}

impl WithSimd for Pass<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Pass { direct, pictures, weights, bias, result } = self;
        let ([_, rows, across], [_, columns]) = (direct.output, direct.plane);
        let pixels = VECTORS * S::F32_LANES;
        let [down, right] = direct.strides;
        let all = direct.input[0] * down * right * direct.plane.iter().product::<usize>();
        // Whole tiles of a channel's sums.
        let long = ((rows - 1) * columns + across).next_multiple_of(pixels);
        let mut planes = Vec::with_capacity(all + pixels);
        let mut sums = vec![0.0; CHANNELS * long];
        let pictures = pictures.chunks_exact(direct.input.iter().product());
        for (picture, result) in
            pictures.zip(result.chunks_exact_mut(direct.output.iter().product()))
        {
            direct.lay(picture, &mut planes);
            // The last tile reads on beyond the last plane.
            planes.resize(all + pixels, 0.0);
            let mut channel = 0;
            for &block in &direct.blocks {
                let (weights, bias) = (&weights[channel * direct.terms.len()..], &bias[channel..]);
                for first in (0..long).step_by(pixels) {
                    let (values, sums) = (&planes[first..], sums[first..].chunks_mut(long));
                    match block {
                        1 => direct.sum::<S, 1>(simd, values, weights, bias, sums),
                        2 => direct.sum::<S, 2>(simd, values, weights, bias, sums),
                        3 => direct.sum::<S, 3>(simd, values, weights, bias, sums),
                        4 => direct.sum::<S, 4>(simd, values, weights, bias, sums),
                        5 => direct.sum::<S, 5>(simd, values, weights, bias, sums),
                        6 => direct.sum::<S, 6>(simd, values, weights, bias, sums),
                        7 => direct.sum::<S, 7>(simd, values, weights, bias, sums),
                        _ => direct.sum::<S, CHANNELS>(simd, values, weights, bias, sums),
                    }
                }
                let results = result.chunks_exact_mut(rows * across).skip(channel);
                for (sums, result) in sums.chunks_exact(long).zip(results).take(block) {
                    for (sums, row) in sums.chunks(columns).zip(result.chunks_exact_mut(across)) {
                        row.copy_from_slice(&sums[..across]);
                    }
                }
                channel += block;
            }
        }
    }
}

impl Direct {
    /// Puts `O` channels of the outputs whose values begin with `values` at the beginning of each of
    /// their `sums`.
    #[inline(always)]
    fn sum<S: Simd, const O: usize>(
        &self,
        simd: S,
        values: &[f32],
        weights: &[f32],
        bias: &[f32],
        sums: ChunksMut<'_, f32>,
    ) {
        let (lanes, (weights, _)) = (S::F32_LANES, weights.as_chunks::<O>());
        let mut totals: [_; O] = array::from_fn(|o| [simd.splat_f32s(bias[o]); VECTORS]);
        for (&at, weights) in self.terms.iter().zip(weights) {
            let values = &values[at..][..VECTORS * lanes];
            let vector = |v: usize| cast_slice(&values[v * lanes..][..lanes]);
            let vectors: [S::f32s; VECTORS] = array::from_fn(|v| pod_read_unaligned(vector(v)));
            for (totals, &weight) in totals.iter_mut().zip(weights) {
                let weight = simd.splat_f32s(weight);
                for (total, &vector) in totals.iter_mut().zip(&vectors) {
                    *total = simd.mul_add_e_f32s(weight, vector, *total);
                }
            }
        }
        let zero = simd.splat_f32s(0.0);
        // Two loops that unroll: a single one over all totals would keep these in memory.
        for (totals, sums) in totals.into_iter().zip(sums) {
            for (total, sums) in totals.into_iter().zip(sums.chunks_exact_mut(lanes)) {
                let total = if self.relu { simd.max_f32s(total, zero) } else { total };
                sums.copy_from_slice(cast_slice(slice::from_ref(&total)));
            }
        }
    }
}

impl Op for Direct {
    fn name(&self) -> StaticName {
        "DirectConvolution".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Direct {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let pictures = inputs[0].to_plain_array_view::<f32>()?;
        let shape = self.output_shape(inputs[0].shape(), |extent| extent);
        let mut result = Tensor::zero::<f32>(&shape)?;
        Arch::new().dispatch(Pass {
            direct: self,
            pictures: pictures.as_slice().context("not row-major")?,
            weights: self.weights.try_as_plain_ram()?.as_slice()?,
            bias: self.bias.try_as_plain_ram()?.as_slice()?,
            result: result.try_as_plain_ram_mut()?.as_slice_mut()?,
        });
        Ok(tvec![result.into_tvalue()])
    }
}

impl TypedOp for Direct {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![f32::fact(self.output_shape(&inputs[0].shape, |extent| extent.to_dim()))])
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tract_onnx::tract_core::ops::cnn::{PaddingSpec, PoolSpec};
    use tract_onnx::tract_core::ops::math::max;

    use super::*;

    /// What a convolution is made of, but for its values.
    #[derive(Clone, Debug)]
    struct Case {
        input: [usize; 4],
        channels: usize,
        kernel: [usize; 2],
        strides: [usize; 2],
        before: [usize; 2],
        after: [usize; 2],
        dilations: [usize; 2],
        group: usize,
        format: DataFormat,
        biased: bool,
        relu: bool,
    }

    impl Case {
        /// The picture's shape in the case's format; without a batch axis, of the first picture.
        fn shape(&self) -> Vec<usize> {
            let [n, c, h, w] = self.input;
            match self.format {
                DataFormat::NCHW => vec![n, c, h, w],
                DataFormat::CHW => vec![c, h, w],
                DataFormat::NHWC => vec![n, h, w, c],
                DataFormat::HWC => vec![h, w, c],
            }
        }
    }

    /// Convolutions that are computed directly.
    fn cases() -> impl Strategy<Value = Case> {
        let sides = || [1..=4usize, 1..=4usize];
        let pads = || [0..=2usize, 0..=2usize];
        let input = [1..=2usize, 1..=3usize, 4..=20usize, 4..=30usize];
        (input, 1..=9usize, sides(), sides(), pads(), pads(), any::<[bool; 3]>())
            .prop_filter("1 × 1 is a product as it is", |(_, _, kernel, ..)| *kernel != [1, 1])
            .prop_map(|(input, channels, kernel, strides, before, after, flags)| Case {
                input,
                channels,
                kernel,
                strides,
                before,
                after,
                dilations: [1, 1],
                group: 1,
                format: if flags[0] { DataFormat::NCHW } else { DataFormat::CHW },
                biased: flags[1],
                relu: flags[2],
            })
    }

    /// Convolutions that are not: in groups, dilated, or with channels last.
    fn others() -> impl Strategy<Value = Case> {
        let formats = [DataFormat::NCHW, DataFormat::CHW, DataFormat::NHWC, DataFormat::HWC];
        let changes =
            (1..=3usize, [1..=3usize, 1..=3usize], prop::sample::select(formats.to_vec()));
        (cases(), changes)
            .prop_map(|(case, (group, dilations, format))| {
                let [n, c, h, w] = case.input;
                let input = [n, c * group, h + 8, w + 8];
                Case { input, channels: case.channels * group, group, dilations, format, ..case }
            })
            .prop_filter("computed directly", |case| {
                case.group > 1 || case.dilations != [1, 1] || case.format.c_is_last()
            })
    }

    /// Values between −1 and 1 that are not alike.
    fn values(shape: &[usize]) -> TractResult<Tensor> {
        let values = (0..shape.iter().product()).map(|at: usize| (at * 7919 % 255) as f32 / 127.0);
        Tensor::from_shape(shape, &values.map(|it| it - 1.0).collect::<Vec<_>>())
    }

    fn model(case: &Case) -> TractResult<TypedModel> {
        let Case { input, channels, kernel, strides, before, after, biased, relu, .. } = *case;
        let mut model = TypedModel::default();
        let picture = model.add_source("picture", f32::fact(case.shape()))?;
        let weights = [channels, input[1] / case.group, kernel[0], kernel[1]];
        let weights = model.add_const("weights", values(&weights)?)?;
        let bias = if biased { values(&[channels])? } else { tensor0(0.0f32) };
        let bias = model.add_const("bias", bias)?;
        let conv = Conv {
            pool_spec: PoolSpec::new(
                case.format,
                kernel[..].into(),
                PaddingSpec::Explicit(before[..].into(), after[..].into()),
                Some(case.dilations[..].into()),
                Some(strides[..].into()),
                input[1],
                channels,
            ),
            kernel_fmt: KernelFormat::OIHW,
            group: case.group,
            q_params: None,
        };
        let mut output = model.wire_node("conv", conv, &[picture, weights, bias])?;
        if relu {
            let zero = model
                .add_const("zero", tensor0(0.0f32).broadcast_into_rank(case.shape().len())?)?;
            output = model.wire_node("relu", max(), &[output[0], zero])?;
        }
        model.select_output_outlets(&output)?;
        Ok(model)
    }

    fn run(model: TypedModel, input: &[usize]) -> TractResult<Tensor> {
        let plan = model.into_optimized()?.into_runnable()?;
        Ok(plan.run(tvec![values(input)?.into_tvalue()])?.remove(0).into_tensor())
    }

    /// What every place of the result is by definition: the sum over what the kernel sees there.
    fn by_definition(case: &Case) -> Vec<f32> {
        let Case { input: [pictures, channels, height, width], kernel, strides, .. } = *case;
        let Case { before, after, dilations, group, .. } = *case;
        let pictures = if case.format.has_n() { pictures } else { 1 };
        let flat = |shape: &[usize]| {
            let values = values(shape).expect("values");
            values
                .try_as_plain_ram()
                .and_then(|it| Ok(it.as_slice::<f32>()?.to_vec()))
                .expect("f32")
        };
        let picture = flat(&[pictures, channels, height, width]);
        let depth = channels / group;
        let weights = flat(&[case.channels, depth, kernel[0], kernel[1]]);
        let bias = if case.biased { flat(&[case.channels]) } else { vec![0.0; case.channels] };
        let sides = [0, 1].map(|axis| {
            let seen = dilations[axis] * (kernel[axis] - 1) + 1;
            ([height, width][axis] + before[axis] + after[axis] - seen) / strides[axis] + 1
        });
        let mut result = Vec::new();
        for (n, m) in (0..pictures).flat_map(|n| (0..case.channels).map(move |m| (n, m))) {
            let first = m / (case.channels / group) * depth;
            for (y, x) in (0..sides[0]).flat_map(|y| (0..sides[1]).map(move |x| (y, x))) {
                let mut sum = bias[m];
                for term in 0..depth * kernel[0] * kernel[1] {
                    let (c, i, j) = (
                        term / (kernel[0] * kernel[1]),
                        term / kernel[1] % kernel[0],
                        term % kernel[1],
                    );
                    let row = (y * strides[0] + i * dilations[0]).wrapping_sub(before[0]);
                    let column = (x * strides[1] + j * dilations[1]).wrapping_sub(before[1]);
                    if row < height && column < width {
                        let plane = n * channels + first + c;
                        let pixel = picture[(plane * height + row) * width + column];
                        sum += weights[m * depth * kernel[0] * kernel[1] + term] * pixel;
                    }
                }
                result.push(if case.relu { sum.max(0.0) } else { sum });
            }
        }
        result
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_definition_and_of_tract(case in cases(), at_once in 1..=CHANNELS) {
            let plain = model(&case).expect("a model");
            let mut direct = plain.clone();
            direct_convolutions(&mut direct, at_once).expect("direct");
            direct.compact().expect("compacts");
            let names = direct.nodes.iter().map(|node| node.op.name().into_owned());
            prop_assert_eq!(names.collect::<Vec<_>>(), ["Source", "DirectConvolution"]);
            let [expected, actual] =
                [plain, direct].map(|model| run(model, &case.shape()).expect("runs"));
            // Sums of some dozen terms between −1 and 1 may be in another order: partial ones of up to ten
            // are rounded to half a millionth each time.
            let close = Approximation::Custom(1e-5, 1e-5, 0.0);
            prop_assert!(actual.close_enough(&expected, close).is_ok());
            let defined = Tensor::from_shape(actual.shape(), &by_definition(&case)).expect("as many");
            prop_assert!(actual.close_enough(&defined, close).is_ok());
        }

        #[test]
        fn convolutions_of_other_kinds_stay_as_they_are(case in others(), at_once in 1..=CHANNELS) {
            let mut model = model(&case).expect("a model");
            direct_convolutions(&mut model, at_once).expect("left alone");
            let convolutions = model.nodes.iter().filter(|node| node.op_is::<Conv>());
            prop_assert_eq!(convolutions.count(), 1);
            if !case.format.c_is_last() {
                let result = run(model, &case.shape()).expect("runs");
                let defined = Tensor::from_shape(result.shape(), &by_definition(&case));
                let close = Approximation::Custom(1e-5, 1e-5, 0.0);
                prop_assert!(result.close_enough(&defined.expect("as many"), close).is_ok());
            }
        }
    }

    #[test]
    fn a_rectifier_that_widens_the_result_is_not_taken_in() {
        let case = Case {
            input: [1, 2, 3, 3],
            channels: 2,
            kernel: [3, 3],
            strides: [1, 1],
            before: [0, 0],
            after: [0, 0],
            dilations: [1, 1],
            group: 1,
            format: DataFormat::NCHW,
            biased: true,
            relu: false,
        };
        let mut model = model(&case).expect("a model");
        let zeros = Tensor::zero::<f32>(&[1, 1, 4, 4]).expect("zeros");
        let zeros = model.add_const("zeros", zeros).expect("a constant");
        let sums = model.output_outlets().expect("one")[0];
        let output = model.wire_node("relu", max(), &[sums, zeros]).expect("broadcasts");
        model.select_output_outlets(&output).expect("the output");
        let expected = run(model.clone(), &case.shape()).expect("runs");
        direct_convolutions(&mut model, CHANNELS).expect("direct");
        let actual = run(model, &case.shape()).expect("runs");
        assert_eq!(actual.shape(), [1, 2, 4, 4]);
        assert!(actual.close_enough(&expected, Approximation::Close).is_ok());
    }
}
