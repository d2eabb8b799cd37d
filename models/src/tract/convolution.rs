//! Convolutions without matrices.

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
        let input = patch.tap_model(model, model.node(id).inputs[0])?;
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
    let other = model.outlet_fact(node.inputs[1 - successor.slot])?;
    let is_zero = other.uniform.as_ref().is_some_and(|it| it.is_zero().unwrap_or(false));
    Ok(is_zero.then_some(successor.node))
}

/// A convolution of f32 `[N, C, H, W]` with a bias, and perhaps a ReLU behind it.
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
        let pool = &conv.pool_spec;
        let plain = conv.kernel_fmt == KernelFormat::OIHW
            && pool.data_format == DataFormat::NCHW
            && conv.group == 1
            && conv.q_params.is_none()
            && pool.dilations().iter().all(|&it| it == 1)
            && facts.iter().all(|it| it.datum_type == f32::datum_type() && !it.is_exotic());
        let (&[kernel_height, kernel_width], &[down, right]) =
            (&*pool.kernel_shape, &*pool.strides())
        else {
            return Ok(None);
        };
        let (Some(weights), Some(bias)) = (&facts[1].konst, &facts[2].konst) else {
            return Ok(None);
        };
        let (Ok(height), Ok(width)) = (facts[0].shape[2].to_usize(), facts[0].shape[3].to_usize())
        else {
            return Ok(None);
        };
        let [m, channels] = [pool.output_channels, pool.input_channels];
        let k = channels * kernel_height * kernel_width;
        if !plain || kernel_height * kernel_width == 1 || k > TERMS {
            return Ok(None);
        }
        let sides = pool.computed_padding(&[height, width]);
        let output = [m, sides[0].convoluted, sides[1].convoluted];
        if output.contains(&0) {
            return Ok(None);
        }
        let bias = match bias.len() == m {
            true => bias.clone(),
            false => bias.broadcast_scalar_to_shape(&[m])?.into_arc_tensor(),
        };
        let plane =
            [output[1] + (kernel_height - 1) / down, output[2] + (kernel_width - 1) / right];
        let [rows, columns] = plane;
        let terms = (0..k).map(|term| {
            let (channel, place) =
                (term / (kernel_height * kernel_width), term % (kernel_height * kernel_width));
            let (y, x) = (place / kernel_width, place % kernel_width);
            let plane = (channel * down + y % down) * right + x % right;
            (plane * rows + y / down) * columns + x / right
        });

        let count = m.div_ceil(at_once.clamp(1, CHANNELS));
        let starts: Vec<usize> = (0..=count).map(|block| block * m / count).collect();
        let plain = weights.clone().into_tensor();
        let plain = plain.try_as_plain_ram()?.as_slice::<f32>()?;
        let weights: Vec<f32> = starts
            .windows(2)
            .flat_map(|block| {
                (0..k).flat_map(move |term| (block[0]..block[1]).map(move |c| plain[c * k + term]))
            })
            .collect();
        Ok(Some(Direct {
            input: [channels, height, width],
            output,
            strides: [down, right],
            padding: [sides[0].pad_before, sides[1].pad_before],
            plane,
            terms: terms.collect(),
            blocks: starts.windows(2).map(|block| block[1] - block[0]).collect(),
            weights: tensor1(&weights).into_arc_tensor(),
            bias,
            relu,
        }))
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
                        let most = columns - zeros;
                        match right {
                            1 => planes.extend_from_slice(&from[..from.len().min(most)]),
                            2 => {
                                // Pairs, as vectors are shuffled.
                                let (pairs, last) = from.as_chunks::<2>();
                                planes.extend(pairs.iter().take(most).map(|pair| pair[0]));
                                planes.extend(last.iter().take(most.saturating_sub(pairs.len())));
                            }
                            _ => planes.extend(from.iter().step_by(right).take(most)),
                        }
                    }
                    planes.resize(end, 0.0);
                }
            }
        }
    }
}

/// A [`Direct`] of some pictures, `[N, C, H, W]`, and where its `result` belongs.
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
        let [channels, down, across] = self.output;
        let mut result = Tensor::zero::<f32>(&[inputs[0].shape()[0], channels, down, across])?;
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
        let [m, down, across] = self.output.map(|extent| extent.to_dim());
        Ok(tvec![f32::fact([inputs[0].shape[0].clone(), m, down, across])])
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
        biased: bool,
        relu: bool,
    }

    fn cases() -> impl Strategy<Value = Case> {
        let sides = || [1..=4usize, 1..=4usize];
        let pads = || [0..=2usize, 0..=2usize];
        let input = [1..=2usize, 1..=3usize, 4..=20usize, 4..=30usize];
        (input, 1..=9usize, sides(), sides(), pads(), pads(), any::<[bool; 2]>())
            .prop_filter("1 × 1 is a product as it is", |(_, _, kernel, ..)| *kernel != [1, 1])
            .prop_map(|(input, channels, kernel, strides, before, after, [biased, relu])| Case {
                input,
                channels,
                kernel,
                strides,
                before,
                after,
                biased,
                relu,
            })
    }

    /// Values between −1 and 1 that are not alike.
    fn values(shape: &[usize]) -> TractResult<Tensor> {
        let values = (0..shape.iter().product()).map(|at: usize| (at * 7919 % 255) as f32 / 127.0);
        Tensor::from_shape(shape, &values.map(|it| it - 1.0).collect::<Vec<_>>())
    }

    fn model(case: &Case) -> TractResult<TypedModel> {
        let Case { input, channels, kernel, strides, before, after, biased, relu } = case.clone();
        let mut model = TypedModel::default();
        let picture = model.add_source("picture", f32::fact(input))?;
        let weights = [channels, input[1], kernel[0], kernel[1]];
        let weights = model.add_const("weights", values(&weights)?)?;
        let bias = if biased { values(&[channels])? } else { tensor0(0.0f32) };
        let bias = model.add_const("bias", bias)?;
        let conv = Conv {
            pool_spec: PoolSpec::new(
                DataFormat::NCHW,
                kernel[..].into(),
                PaddingSpec::Explicit(before[..].into(), after[..].into()),
                None,
                Some(strides[..].into()),
                input[1],
                channels,
            ),
            kernel_fmt: KernelFormat::OIHW,
            group: 1,
            q_params: None,
        };
        let mut output = model.wire_node("conv", conv, &[picture, weights, bias])?;
        if relu {
            let zero = model.add_const("zero", tensor0(0.0f32).broadcast_into_rank(4)?)?;
            output = model.wire_node("relu", max(), &[output[0], zero])?;
        }
        model.select_output_outlets(&output)?;
        Ok(model)
    }

    fn run(model: TypedModel, input: &[usize]) -> TractResult<Tensor> {
        let plan = model.into_optimized()?.into_runnable()?;
        Ok(plan.run(tvec![values(input)?.into_tvalue()])?.remove(0).into_tensor())
    }

    proptest! {
        #[test]
        fn sums_are_what_tract_makes_of_the_convolution(case in cases(), at_once in 1..=CHANNELS) {
            let plain = model(&case).expect("a model");
            let mut direct = plain.clone();
            direct_convolutions(&mut direct, at_once).expect("direct");
            direct.compact().expect("compacts");
            let names = direct.nodes.iter().map(|node| node.op.name().into_owned());
            prop_assert_eq!(names.collect::<Vec<_>>(), ["Source", "DirectConvolution"]);
            let [expected, actual] =
                [plain, direct].map(|model| run(model, &case.input).expect("runs"));
            // Their sums may be in another order.
            let close = Approximation::Custom(1e-6, 1e-6, 0.0);
            prop_assert!(actual.close_enough(&expected, close).is_ok());
        }
    }
}
