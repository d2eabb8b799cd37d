//! Convolutions, a band of rows at a time.

use std::cmp::Reverse;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_core::ops::math::Max;
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_core::tract_linalg::mmm::{
    AsInputValue, EagerPackedInput, FusedSpec, MMMInputValue, MatMatMul, Query, ScratchSpace,
    retain_best,
};
use tract_onnx::tract_core::tract_linalg::pack::PackedFormat;
use tract_onnx::tract_core::tract_linalg::{BinOp, MmmDispatch};

/// Values in the patches of a band, at most if it has more than one row: they stay in a core's own
/// cache until they have been multiplied.
pub(super) const BAND: usize = 48 << 10;
/// Terms of an output value, at most: with more, it is the weights that do not stay in the cache,
/// and to go through them once for each band costs more than it saves.
const TERMS: usize = 512;
/// Bytes of a value.
const SIZE: usize = size_of::<f32>();

/// Puts a [`Banded`] in the place of each convolution that one computes faster, and of the ReLU
/// behind it. A band's patches have at most `band` values, or one row.
pub(super) fn band_convolutions(model: &mut TypedModel, band: usize) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let Some(conv) = model.node(id).op_as::<Conv>() else { continue };
        let relu = relu_behind(model, id)?;
        let Some(banded) = Banded::of(conv, &model.node_input_facts(id)?, relu.is_some(), band)?
        else {
            continue;
        };
        let last = relu.unwrap_or(id);
        let mut patch = TypedModelPatch::default();
        let input = patch.tap_model(model, model.node(id).inputs[0])?;
        let output = patch.wire_node(&model.node(last).name, banded, &[input])?;
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
/// tract's own gathers patches one value after another, and again for each block of output
/// channels. Here the patches of a few rows are copied row by row, then multiplied by the same
/// kernels, so that they never leave the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Banded {
    /// Channels, height and width.
    input: [usize; 3],
    output: [usize; 3],
    /// Height and width, as the pairs below.
    kernel: [usize; 2],
    strides: [usize; 2],
    /// Zeros before the first row and before the first column.
    padding: [usize; 2],
    /// Output rows of a band.
    rows: usize,
    /// What multiplies a band's patches by the weights, `[C · kernel, channels]`, and which of its
    /// packings both have.
    kernels: (Box<dyn MatMatMul>, usize),
    patches: PackedFormat,
    weights: Box<dyn MMMInputValue>,
    bias: Arc<Tensor>,
    /// What a ReLU clips at, if one is behind it.
    relu: Option<Arc<Tensor>>,
}

impl Banded {
    /// `conv` of inputs of these `facts`, if it is of this kind and small enough.
    fn of(
        conv: &Conv,
        facts: &[&TypedFact],
        relu: bool,
        band: usize,
    ) -> TractResult<Option<Banded>> {
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
        let bias = match bias.len() == m {
            true => bias.clone(),
            false => bias.broadcast_scalar_to_shape(&[m])?.into_arc_tensor(),
        };
        if output.contains(&0) {
            return Ok(None);
        }
        let bands = output[1].div_ceil((band / (k * output[2])).max(1));
        let rows = output[1].div_ceil(bands);
        let n = rows * output[2];

        let Some((kernels, packing)) = kernels(n, k, m) else { return Ok(None) };
        let (patches, weights_format) = kernels.packings()[packing].clone();
        let Some(patches) = patches.downcast_ref::<PackedFormat>() else { return Ok(None) };
        let weights = weights.clone().into_tensor().into_shape(&[m, k])?;
        Ok(Some(Banded {
            input: [channels, height, width],
            output,
            kernel: [kernel_height, kernel_width],
            strides: [down, right],
            padding: [sides[0].pad_before, sides[1].pad_before],
            rows,
            patches: patches.clone(),
            weights: weights_format.prepare_one(&weights, 1, 0)?,
            kernels: (kernels, packing),
            bias,
            relu: relu.then(|| tensor0(0.0f32).into_arc_tensor()),
        }))
    }

    /// Input rows that a band sees, and columns of each phase of such a row.
    fn seen(&self) -> [usize; 2] {
        let [down, right] = self.strides;
        [(self.rows - 1) * down + self.kernel[0], self.output[2] + (self.kernel[1] - 1) / right]
    }

    /// Fills `phases`, `[C, rows, stride, columns]`, with what the output rows from `top` on see of
    /// `picture`, padding included: the columns of a row that neighbours in an output row see
    /// through the same place of the kernel lie side by side.
    fn split(&self, picture: &[f32], top: usize, phases: &mut [f32]) {
        let ([_, height, width], [_, stride]) = (self.input, self.strides);
        let [seen, columns] = self.seen();
        let before = self.padding[1].min(stride * columns);
        let within = width.min(stride * columns - before);
        // Its ends stay zero.
        let mut padded = vec![0.0; stride * columns];
        let planes = picture.chunks_exact(height * width);
        for (plane, phases) in planes.zip(phases.chunks_exact_mut(seen * padded.len())) {
            for (y, phases) in (top * self.strides[0]..).zip(phases.chunks_exact_mut(padded.len()))
            {
                let y = y.wrapping_sub(self.padding[0]);
                if y >= height {
                    phases.fill(0.0);
                    continue;
                }
                padded[before..][..within].copy_from_slice(&plane[y * width..][..within]);
                match stride {
                    1 => phases.copy_from_slice(&padded),
                    2 => {
                        let (even, odd) = phases.split_at_mut(columns);
                        let (pairs, _) = padded.as_chunks::<2>();
                        for ((even, odd), pair) in even.iter_mut().zip(odd).zip(pairs) {
                            [*even, *odd] = *pair;
                        }
                    }
                    _ => {
                        for (phase, to) in phases.chunks_exact_mut(columns).enumerate() {
                            let from = padded.iter().skip(phase).step_by(stride);
                            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                        }
                    }
                }
            }
        }
    }

    /// Fills `packed` with a band's patches, `[C · kernel, rows · W]`, of its `phases`.
    ///
    /// Packed, a matrix lies in panels of so many columns, row by row. Where such a row has `WIDE`
    /// bytes and an output row fills panels, its copies are a few instructions each.
    fn unfold<const WIDE: usize>(
        &self,
        phases: &[u8],
        packed: &mut EagerPackedInput,
    ) -> TractResult<()> {
        let ([down, stride], across) = (self.strides, self.output[2]);
        let [seen, columns] = self.seen();
        let (wide, panel) = (SIZE * self.patches.r, packed.panel_bytes);
        let packed = Arc::get_mut(&mut packed.packed).context("a shared buffer")?.as_bytes_mut();
        let mut line = 0;
        for phases in phases.chunks_exact(SIZE * seen * stride * columns) {
            for at in 0..self.kernel[0] * self.kernel[1] {
                let (dy, dx) = (at / self.kernel[1], at % self.kernel[1]);
                let first = (dy * stride + dx % stride) * columns + dx / stride;
                let rows = phases[SIZE * first..].chunks(SIZE * down * stride * columns);
                let mut place = 0;
                for row in rows.take(self.rows) {
                    let mut row = &row[..SIZE * across];
                    if let (pieces, []) = row.as_chunks::<WIDE>()
                        && WIDE == wide
                    {
                        let panels = packed[line + place / wide * panel..].chunks_mut(panel);
                        for (to, from) in panels.zip(pieces) {
                            to[..WIDE].copy_from_slice(from);
                        }
                        place += row.len();
                        continue;
                    }
                    while !row.is_empty() {
                        let lane = place % wide;
                        let (from, rest) = row.split_at(row.len().min(wide - lane));
                        let to = &mut packed[line + place / wide * panel + lane..];
                        to[..from.len()].copy_from_slice(from);
                        (row, place) = (rest, place + from.len());
                    }
                }
                line += wide;
            }
        }
        Ok(())
    }

    /// Multiplies a band's `patches` by the weights into the rows from `top` on of picture `at` of
    /// `result`, `[N, channels, H, W]`.
    fn multiply(
        &self,
        patches: &EagerPackedInput,
        result: &mut Tensor,
        at: usize,
        top: usize,
        scratch: &mut dyn ScratchSpace,
    ) -> TractResult<()> {
        let [channels, down, across] = self.output;
        let (pixels, plane) = (self.rows * across, down * across);
        let fits = result.datum_type() == f32::datum_type()
            && result.shape().get(1..) == Some(&self.output[..])
            && at < result.shape()[0]
            && top + self.rows <= down;
        ensure!(fits, "a band of {} rows from {top} of picture {at} in {result:?}", self.rows);
        let (shape, strides) = ([pixels, channels], [1, plane as isize]);
        let first = SIZE * (at * channels * plane + top * across);
        let (kernels, packing) = &self.kernels;
        let mut steps = vec![
            FusedSpec::AddMatMul {
                a: AsInputValue::Borrowed(patches),
                b: AsInputValue::Borrowed(&*self.weights),
                packing: *packing,
            },
            FusedSpec::BinPerCol(self.bias.view(), BinOp::Add),
        ];
        steps.extend(self.relu.as_deref().map(|zero| FusedSpec::BinScalar(zero, BinOp::Max)));
        // SAFETY: the kernels write the value of pixel p < `pixels` and channel c < `channels` at
        // `first` + 4 · (p + c · `plane`) bytes. As `top` + rows ≤ H, that is within channel c's plane
        // of picture `at`, all of which `result` has (checked above), as f32, and which nobody else
        // can see while it is borrowed. They read `patches` and the weights as the packing says, which
        // made both, one bias a channel, and one value to clip at.
        unsafe {
            let band = TensorView::from_bytes(result, first as isize, &shape, &strides);
            steps.push(FusedSpec::Store(kernels.c_view(Some(0), Some(1)).wrap(&band)));
            kernels.run_with_scratch_space(pixels, channels, scratch, &steps)
        }
    }
}

/// The kernels for a product of `[pixels, k]` and `[k, channels]`, and which of their packings.
///
/// Those that compute least beyond it, then those of the largest tiles, then of the most pixels a
/// tile: patches are packed faster the more of them lie side by side. Fewer channels than four make
/// too little of each value that is loaded.
fn kernels(pixels: usize, k: usize, channels: usize) -> Option<(Box<dyn MatMatMul>, usize)> {
    let query = Query {
        weight: f32::datum_type().into(),
        activation: f32::datum_type(),
        accumulators: tvec![f32::datum_type()],
        store: None,
        allow_extractor: false,
        m: Some(pixels),
        k: Some(k),
        n: Some(channels),
    };
    let mut suitable = MmmDispatch::native().suitable(&query);
    retain_best(&mut suitable);
    let wide = suitable.into_iter().filter(|(kernels, ..)| kernels.nr() >= 4);
    let best = wide.min_by_key(|(kernels, ..)| {
        let (mr, nr) = (kernels.mr(), kernels.nr());
        let computed = pixels.next_multiple_of(mr) * channels.next_multiple_of(nr);
        (computed, Reverse(mr * nr), Reverse(mr))
    });
    best.map(|(kernels, packing, _)| (kernels, packing))
}

impl Op for Banded {
    fn name(&self) -> StaticName {
        "BandedConvolution".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Banded {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = inputs[0].to_plain_array_view::<f32>()?;
        let pictures = input.as_slice().context("not row-major")?;
        let [channels, down, across] = self.output;
        let [number, k] = [inputs[0].shape()[0], self.input[0] * self.kernel[0] * self.kernel[1]];
        let mut result = Tensor::zero::<f32>(&[number, channels, down, across])?;
        let mut patches = self.patches.new_packed_buffer(k, self.rows * across)?;
        // SAFETY: it is a buffer of the kernels' own, with nothing in it yet.
        let mut scratch = unsafe { self.kernels.0.allocate_scratch_space() };
        let [seen, columns] = self.seen();
        let mut phases = Tensor::zero::<f32>(&[self.input[0] * seen * self.strides[1] * columns])?;
        for (at, picture) in pictures.chunks_exact(self.input.iter().product()).enumerate() {
            for top in (0..down).step_by(self.rows) {
                // The last band reaches back rather than beyond the last row.
                let top = top.min(down - self.rows);
                self.split(picture, top, phases.try_as_plain_ram_mut()?.as_slice_mut()?);
                let split = phases.as_bytes();
                match self.patches.r {
                    16 => self.unfold::<64>(split, &mut patches)?,
                    24 => self.unfold::<96>(split, &mut patches)?,
                    _ => self.unfold::<32>(split, &mut patches)?,
                }
                self.multiply(&patches, &mut result, at, top, &mut *scratch)?;
            }
        }
        Ok(tvec![result.into_tvalue()])
    }
}

impl TypedOp for Banded {
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
        fn bands_are_what_tract_makes_of_the_convolution(case in cases(), band in 1..2000usize) {
            let plain = model(&case).expect("a model");
            let mut banded = plain.clone();
            band_convolutions(&mut banded, band).expect("bands");
            banded.compact().expect("compacts");
            let names = banded.nodes.iter().map(|node| node.op.name().into_owned());
            prop_assert_eq!(names.collect::<Vec<_>>(), ["Source", "BandedConvolution"]);
            let [expected, actual] =
                [plain, banded].map(|model| run(model, &case.input).expect("runs"));
            // Their sums may be in another order.
            let close = Approximation::Custom(1e-6, 1e-6, 0.0);
            prop_assert!(actual.close_enough(&expected, close).is_ok());
        }
    }
}
