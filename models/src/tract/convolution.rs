//! Convolutions, a band of rows at a time.

mod winograd;

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

use self::winograd::Winograd;

/// Values of a band, at most if it has more than one row: they stay in a core's own cache until they
/// have been multiplied.
pub(super) const BAND: usize = 48 << 10;
/// Terms of an output value, at most: with more, it is the weights that do not stay in the cache,
/// and to go through them once for each band costs more than it saves.
const TERMS: usize = 512;
/// Bytes of a value.
const SIZE: usize = size_of::<f32>();

/// Puts a faster one in the place of each convolution that has one, and of the ReLU behind it: a
/// [`Winograd`] where that saves multiplications enough, else a [`Banded`]. A band has at most `band`
/// values, or one row.
pub(super) fn band_convolutions(model: &mut TypedModel, band: usize) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let Some(conv) = model.node(id).op_as::<Conv>() else { continue };
        let relu = relu_behind(model, id)?;
        let Some(layer) = Layer::of(conv, &model.node_input_facts(id)?, relu.is_some())? else {
            continue;
        };
        let last = relu.unwrap_or(id);
        let mut patch = TypedModelPatch::default();
        let input = patch.tap_model(model, model.node(id).inputs[0])?;
        let name = &model.node(last).name;
        let output = if let Some(winograd) = Winograd::of(&layer, band)? {
            patch.wire_node(name, winograd, &[input])?
        } else if let Some(banded) = Banded::of(layer, band)? {
            patch.wire_node(name, banded, &[input])?
        } else {
            continue;
        };
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
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    /// Channels, height and width.
    input: [usize; 3],
    output: [usize; 3],
    /// Height and width, as the pairs below.
    kernel: [usize; 2],
    strides: [usize; 2],
    /// Zeros before the first row and before the first column.
    padding: [usize; 2],
    /// `[output channels, C · kernel]`.
    weights: Arc<Tensor>,
    bias: Arc<Tensor>,
    /// What a ReLU clips at, if one is behind it.
    relu: Option<Arc<Tensor>>,
}

impl Layer {
    /// `conv` of inputs of these `facts`, if it is of this kind and small enough.
    fn of(conv: &Conv, facts: &[&TypedFact], relu: bool) -> TractResult<Option<Layer>> {
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
        Ok(Some(Layer {
            input: [channels, height, width],
            output,
            kernel: [kernel_height, kernel_width],
            strides: [down, right],
            padding: [sides[0].pad_before, sides[1].pad_before],
            weights: weights.clone().into_tensor().into_shape(&[m, k])?.into_arc_tensor(),
            bias,
            relu: relu.then(|| tensor0(0.0f32).into_arc_tensor()),
        }))
    }

    /// Lays row `y` of a channel, counted from its padding on, between the zeros of `padded`; false if it
    /// is padding itself.
    fn pad(&self, plane: &[f32], y: usize, padded: &mut [f32]) -> bool {
        let ([_, height, width], [above, before]) = (self.input, self.padding);
        let y = y.wrapping_sub(above);
        let before = before.min(padded.len());
        let within = width.min(padded.len() - before);
        if y < height {
            padded[before..][..within].copy_from_slice(&plane[y * width..][..within]);
        }
        y < height
    }

    /// What it makes of such an `input`.
    fn fact(&self, input: &TypedFact) -> TypedFact {
        let [m, down, across] = self.output.map(|extent| extent.to_dim());
        f32::fact([input.shape[0].clone(), m, down, across])
    }
}

/// How many of `rows` a band has, so that all bands have about as many: each row has so many `values`,
/// a band at most `band` or one row.
fn rows_of_a_band(rows: usize, values: usize, band: usize) -> usize {
    rows.div_ceil(rows.div_ceil((band / values).max(1)))
}

/// A product of a packed matrix `[terms, pixels]` by fixed weights.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Product {
    pixels: usize,
    channels: usize,
    /// What multiplies, and in which of its packings both sides are.
    kernels: (Box<dyn MatMatMul>, usize),
    format: PackedFormat,
    weights: Box<dyn MMMInputValue>,
}

impl Product {
    /// By `weights`, `[channels, terms]`, if there are kernels for it.
    fn of(pixels: usize, weights: &Tensor) -> TractResult<Option<Product>> {
        let &[channels, terms] = weights.shape() else { bail!("{weights:?} is no matrix") };
        let Some((kernels, packing)) = kernels(pixels, terms, channels) else { return Ok(None) };
        let (format, weights_format) = kernels.packings()[packing].clone();
        let Some(format) = format.downcast_ref::<PackedFormat>().cloned() else { return Ok(None) };
        let weights = weights_format.prepare_one(weights, 1, 0)?;
        Ok(Some(Product { pixels, channels, kernels: (kernels, packing), format, weights }))
    }

    /// What the kernels keep between products.
    fn scratch(&self) -> Box<dyn ScratchSpace> {
        // SAFETY: it is a buffer of the kernels' own, with nothing in it yet.
        unsafe { self.kernels.0.allocate_scratch_space() }
    }

    /// Writes the product of `patches`, and what `then` makes of it, to `result`: the value of pixel
    /// p and channel c at place `first` + p + c · `plane`.
    fn multiply<'a>(
        &'a self,
        patches: &'a EagerPackedInput,
        then: impl IntoIterator<Item = FusedSpec<'a>>,
        (result, first, plane): (&mut Tensor, usize, usize),
        scratch: &mut dyn ScratchSpace,
    ) -> TractResult<()> {
        let end = first + (self.channels - 1) * plane + self.pixels;
        let fits = result.datum_type() == f32::datum_type() && end <= result.len();
        ensure!(fits && plane >= self.pixels, "a product from {first} to {end} in {result:?}");
        let (shape, strides) = ([self.pixels, self.channels], [1, plane as isize]);
        let (kernels, packing) = &self.kernels;
        let mut steps = vec![FusedSpec::AddMatMul {
            a: AsInputValue::Borrowed(patches),
            b: AsInputValue::Borrowed(&*self.weights),
            packing: *packing,
        }];
        steps.extend(then);
        // SAFETY: the kernels write the value of pixel p < `pixels` and channel c < `channels` at the
        // place above, times four bytes. As `end` is within `result` (checked above), all of them are,
        // as f32, and nobody else can see it while it is borrowed. They read `patches` and the weights
        // as the packing says, which made both.
        unsafe {
            let place = TensorView::from_bytes(result, (SIZE * first) as isize, &shape, &strides);
            steps.push(FusedSpec::Store(kernels.c_view(Some(0), Some(1)).wrap(&place)));
            kernels.run_with_scratch_space(self.pixels, self.channels, scratch, &steps)
        }
    }
}

/// A [`Layer`] whose patches are copied row by row, for a few output rows at a time, then multiplied
/// by tract's kernels, so that they never leave the cache.
///
/// tract's own gathers patches one value after another, and again for each block of output channels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Banded {
    layer: Layer,
    /// Output rows of a band.
    rows: usize,
    product: Product,
}

impl Banded {
    fn of(layer: Layer, band: usize) -> TractResult<Option<Banded>> {
        let [_, down, across] = layer.output;
        let rows = rows_of_a_band(down, layer.weights.shape()[1] * across, band);
        let product = Product::of(rows * across, &layer.weights)?;
        Ok(product.map(|product| Banded { layer, rows, product }))
    }

    /// Input rows that a band sees, and columns of each phase of such a row.
    fn seen(&self) -> [usize; 2] {
        let [down, right] = self.layer.strides;
        [
            (self.rows - 1) * down + self.layer.kernel[0],
            self.layer.output[2] + (self.layer.kernel[1] - 1) / right,
        ]
    }

    /// Fills `phases`, `[C, rows, stride, columns]`, with what the output rows from `top` on see of
    /// `picture`, padding included: the columns of a row that neighbours in an output row see
    /// through the same place of the kernel lie side by side.
    fn split(&self, picture: &[f32], top: usize, phases: &mut [f32]) {
        let ([_, height, width], [_, stride]) = (self.layer.input, self.layer.strides);
        let [seen, columns] = self.seen();
        // Its ends stay zero.
        let mut padded = vec![0.0; stride * columns];
        let planes = picture.chunks_exact(height * width);
        for (plane, phases) in planes.zip(phases.chunks_exact_mut(seen * padded.len())) {
            for (y, phases) in
                (top * self.layer.strides[0]..).zip(phases.chunks_exact_mut(padded.len()))
            {
                if !self.layer.pad(plane, y, &mut padded) {
                    phases.fill(0.0);
                    continue;
                }
                match stride {
                    1 => phases.copy_from_slice(&padded),
                    2 => {
                        let (even, odd) = phases.split_at_mut(columns);
                        halve(&padded, even, odd);
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
    fn unfold(&self, phases: &[u8], packed: &mut EagerPackedInput) -> TractResult<()> {
        let ([down, stride], across) = (self.layer.strides, self.layer.output[2]);
        let [seen, columns] = self.seen();
        let mut packed = Panels::of(packed, &self.product.format)?;
        let mut line = 0;
        for phases in phases.chunks_exact(SIZE * seen * stride * columns) {
            for at in 0..self.layer.kernel[0] * self.layer.kernel[1] {
                let (dy, dx) = (at / self.layer.kernel[1], at % self.layer.kernel[1]);
                let first = (dy * stride + dx % stride) * columns + dx / stride;
                let rows = phases[SIZE * first..].chunks(SIZE * down * stride * columns);
                for (number, row) in rows.take(self.rows).enumerate() {
                    packed.lay(&row[..SIZE * across], line, SIZE * number * across);
                }
                line += 1;
            }
        }
        Ok(())
    }
}

/// Every second of the `values`, and the others.
fn halve(values: &[f32], even: &mut [f32], odd: &mut [f32]) {
    for ((even, odd), pair) in even.iter_mut().zip(odd).zip(values.as_chunks::<2>().0) {
        [*even, *odd] = *pair;
    }
}

/// A matrix as it is packed: in panels of so many columns, row by row.
struct Panels<'a> {
    bytes: &'a mut [u8],
    /// Bytes of a row of a panel, and of a panel.
    wide: usize,
    panel: usize,
}

impl Panels<'_> {
    fn of<'a>(packed: &'a mut EagerPackedInput, format: &PackedFormat) -> TractResult<Panels<'a>> {
        let (wide, panel) = (SIZE * format.r, packed.panel_bytes);
        let bytes = Arc::get_mut(&mut packed.packed).context("a shared buffer")?.as_bytes_mut();
        Ok(Panels { bytes, wide, panel })
    }

    /// Copies `values` to row `line` of the matrix, from its byte `place` on.
    fn lay(&mut self, values: &[u8], line: usize, place: usize) {
        match self.wide {
            32 => self.lay_wide::<32>(values, line, place),
            64 => self.lay_wide::<64>(values, line, place),
            96 => self.lay_wide::<96>(values, line, place),
            _ => self.lay_narrow(values, line, place),
        }
    }

    /// The same where rows of panels have `WIDE` bytes: whole ones by a few instructions each.
    fn lay_wide<const WIDE: usize>(&mut self, values: &[u8], line: usize, place: usize) {
        if !place.is_multiple_of(WIDE) {
            return self.lay_narrow(values, line, place);
        }
        let (pieces, rest) = values.as_chunks::<WIDE>();
        let panels = self.bytes[line * WIDE + place / WIDE * self.panel..].chunks_mut(self.panel);
        for (to, from) in panels.zip(pieces) {
            to[..WIDE].copy_from_slice(from);
        }
        self.lay_narrow(rest, line, place + values.len() - rest.len());
    }

    fn lay_narrow(&mut self, mut values: &[u8], line: usize, mut place: usize) {
        let Panels { wide, panel, .. } = *self;
        while !values.is_empty() {
            let lane = place % wide;
            let (from, rest) = values.split_at(values.len().min(wide - lane));
            let to = &mut self.bytes[line * wide + place / wide * panel + lane..];
            to[..from.len()].copy_from_slice(from);
            (values, place) = (rest, place + from.len());
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
        let Layer { input, output: [channels, down, across], strides, bias, relu, .. } =
            &self.layer;
        let (plane, format) = (down * across, &self.product.format);
        let mut result = Tensor::zero::<f32>(&[inputs[0].shape()[0], *channels, *down, *across])?;
        let terms = self.layer.weights.shape()[1];
        let mut patches = format.new_packed_buffer(terms, self.rows * across)?;
        let mut scratch = self.product.scratch();
        let [seen, columns] = self.seen();
        let mut phases = Tensor::zero::<f32>(&[input[0] * seen * strides[1] * columns])?;
        for (at, picture) in pictures.chunks_exact(input.iter().product()).enumerate() {
            for top in (0..*down).step_by(self.rows) {
                // The last band reaches back rather than beyond the last row.
                let top = top.min(down - self.rows);
                self.split(picture, top, phases.try_as_plain_ram_mut()?.as_slice_mut()?);
                let split = phases.as_bytes();
                self.unfold(split, &mut patches)?;
                let clip = relu.as_deref().map(|zero| FusedSpec::BinScalar(zero, BinOp::Max));
                let then = [FusedSpec::BinPerCol(bias.view(), BinOp::Add)].into_iter().chain(clip);
                let place = (&mut result, at * channels * plane + top * across, plane);
                self.product.multiply(&patches, then, place, &mut *scratch)?;
            }
        }
        Ok(tvec![result.into_tvalue()])
    }
}

impl TypedOp for Banded {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![self.layer.fact(inputs[0])])
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseError;
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

    /// Cases for [`Winograd`].
    fn minimal() -> impl Strategy<Value = Case> {
        let channels = winograd::CHANNELS..winograd::CHANNELS + 10;
        let (pads, sizes) = (|| [0..=2usize, 0..=2usize], [1..=2, 1..=1, 3..=17, 3..=37usize]);
        let all = (sizes, channels.clone(), channels, pads(), pads(), any::<[bool; 2]>());
        all.prop_map(|([number, _, down, across], inputs, channels, before, after, last)| Case {
            input: [number, inputs, down, across],
            channels,
            kernel: [3, 3],
            strides: [1, 1],
            before,
            after,
            biased: last[0],
            relu: last[1],
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

    /// That the faster operation is of this name, and that both come as `close` to each other.
    fn check(
        case: &Case,
        band: usize,
        (name, close): (&str, Approximation),
    ) -> Result<(), TestCaseError> {
        let plain = model(case).expect("a model");
        let mut faster = plain.clone();
        band_convolutions(&mut faster, band).expect("bands");
        faster.compact().expect("compacts");
        let names = faster.nodes.iter().map(|node| node.op.name().into_owned());
        prop_assert_eq!(names.collect::<Vec<_>>(), ["Source", name]);
        let [expected, actual] =
            [plain, faster].map(|model| run(model, &case.input).expect("runs"));
        actual
            .close_enough(&expected, close)
            .map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        Ok(())
    }

    proptest! {
        #[test]
        fn bands_are_what_tract_makes_of_the_convolution(case in cases(), band in 1..2000usize) {
            // Their sums may be in another order.
            let close = Approximation::Custom(1e-6, 1e-6, 0.0);
            check(&case, band, ("BandedConvolution", close))?;
        }

        #[test]
        fn so_is_what_takes_fewer_multiplications(case in minimal(), band in 1..20000usize) {
            // Of sums of up to twenty: what is turned and back is rounded more often.
            let close = Approximation::Custom(1e-4, 0.0, 0.0);
            check(&case, band, ("WinogradConvolution", close))?;
        }
    }
}
