//! 3 × 3 convolutions of stride 1 with 16 multiplications where there are 36: F(2 × 2, 3 × 3) of
//! Winograd's minimal filtering (Lavin and Gray, 2016).
//!
//! Four by four values of a channel give two by two output values. Both they and the weights are
//! turned into 16 others, of which each kind is multiplied by itself: 16 products of matrices, over
//! all tiles of a band. What they come to is turned into the output.

use std::array;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::tract_linalg::mmm::EagerPackedInput;

use super::{Layer, Panels, Product, SIZE, halve, rows_of_a_band};

/// Channels on either side, at least: with fewer, turning values costs more than it saves.
pub(super) const CHANNELS: usize = 32;

/// A [`Layer`] of tiles of two by two output values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Winograd {
    layer: Layer,
    /// Rows of tiles in a band.
    rows: usize,
    products: Vec<Product>,
}

impl Winograd {
    /// `layer`, if it is of this kind. A band has its values turned: what goes in, or what comes out.
    pub(super) fn of(layer: &Layer, band: usize) -> TractResult<Option<Winograd>> {
        let ([inputs, ..], [outputs, down, _]) = (layer.input, layer.output);
        if layer.kernel != [3, 3] || layer.strides != [1, 1] || inputs.min(outputs) < CHANNELS {
            return Ok(None);
        }
        let weights = layer.weights.to_plain_array_view::<f32>()?;
        let weights = weights.as_slice().context("not row-major")?;
        let turned: Vec<[f32; 16]> =
            weights.as_chunks::<9>().0.iter().map(turned_weights).collect();
        let across = layer.output[2].div_ceil(2);
        let rows = rows_of_a_band(down.div_ceil(2), 16 * inputs.max(outputs) * across, band);
        let mut products = Vec::new();
        for kind in 0..16 {
            let weights = turned.iter().map(|weights| weights[kind]).collect::<Vec<_>>();
            let weights = Tensor::from_shape(&[outputs, inputs], &weights)?;
            let Some(product) = Product::of(rows * across, &weights)? else { return Ok(None) };
            products.push(product);
        }
        Ok(Some(Winograd { layer: layer.clone(), rows, products }))
    }

    /// Tiles in a row.
    fn across(&self) -> usize {
        self.layer.output[2].div_ceil(2)
    }

    /// Fills `turned`, one packed matrix `[C, tiles]` of each kind, with what the tiles of the rows
    /// from `top` on see of `picture`.
    fn turn(
        &self,
        picture: &[f32],
        top: usize,
        turned: &mut [EagerPackedInput],
    ) -> TractResult<()> {
        let ([_, height, width], across) = (self.layer.input, self.across());
        let mut padded = vec![0.0; 2 * across + 2];
        let [mut even, mut odd] = [(); 2].map(|()| vec![0.0; across + 1]);
        // Each row that the tiles see, `[4, tiles in a row]`, turned by itself.
        let mut lines = vec![0.0; (2 * self.rows + 2) * 4 * across];
        let mut kinds = Tensor::zero::<f32>(&[16, self.rows, across])?;
        let matrices = turned.iter_mut().zip(&self.products);
        let mut matrices = matrices
            .map(|(matrix, product)| Panels::of(matrix, &product.format))
            .collect::<TractResult<Vec<_>>>()?;
        for (channel, plane) in picture.chunks_exact(height * width).enumerate() {
            for (y, line) in (2 * top..).zip(lines.chunks_exact_mut(4 * across)) {
                if !self.layer.pad(plane, y, &mut padded) {
                    line.fill(0.0);
                    continue;
                }
                halve(&padded, &mut even, &mut odd);
                differences([&even, &odd, &even[1..], &odd[1..]], fourths(line));
            }
            let mut values = kinds.try_as_plain_ram_mut()?;
            let quarters = fourths(values.as_slice_mut()?);
            let [a, b, c, d] = quarters.map(|it| it.chunks_exact_mut(across));
            // By column of the turned tiles, then by row of tiles.
            let columns = (0..4).flat_map(|column| (0..self.rows).map(move |row| (column, row)));
            for ((((a, b), c), d), (column, row)) in a.zip(b).zip(c).zip(d).zip(columns) {
                let line = |at| &lines[((2 * row + at) * 4 + column) * across..][..across];
                differences(array::from_fn(line), [a, b, c, d]);
            }
            let kinds = kinds.as_bytes().chunks_exact(SIZE * self.rows * across);
            for (kind, matrix) in kinds.zip(&mut matrices) {
                matrix.lay(kind, channel, 0);
            }
        }
        Ok(())
    }

    /// Writes rows from `top` on of a picture `[channels, H, W]` of what the `products` came to,
    /// `[16, channels, tiles]`.
    fn turn_back(&self, products: &[f32], top: usize, picture: &mut [f32]) -> TractResult<()> {
        let ([channels, down, wide], across) = (self.layer.output, self.across());
        let bias = self.layer.bias.to_plain_array_view::<f32>()?;
        let tiles = self.rows * across;
        // Both rows of the tiles, `[2, 4, tiles]`, then both of their columns.
        let mut halves = vec![0.0; 8 * tiles];
        let mut values = vec![0.0; 4 * tiles];
        let mut line = vec![0.0; 2 * across];
        for (channel, (plane, &bias)) in
            picture.chunks_exact_mut(down * wide).zip(&bias).enumerate()
        {
            let kind = |at: usize| &products[(at * channels + channel) * tiles..][..tiles];
            let (upper, lower) = halves.split_at_mut(4 * tiles);
            let rows = upper.chunks_exact_mut(tiles).zip(lower.chunks_exact_mut(tiles));
            for (column, (upper, lower)) in rows.enumerate() {
                sums(array::from_fn(|row| kind(4 * row + column)), [upper, lower]);
            }
            for (half, values) in
                halves.chunks_exact(4 * tiles).zip(values.chunks_exact_mut(2 * tiles))
            {
                let (left, right) = values.split_at_mut(tiles);
                sums(array::from_fn(|column| &half[column * tiles..][..tiles]), [left, right]);
            }
            values.iter_mut().for_each(|it| *it += bias);
            if self.layer.relu.is_some() {
                values.iter_mut().for_each(|it| *it = it.max(0.0));
            }
            for (number, to) in
                plane[2 * top * wide..].chunks_exact_mut(wide).take(2 * self.rows).enumerate()
            {
                let from = &values[number % 2 * 2 * tiles..][..2 * tiles];
                let place = number / 2 * across;
                let (left, right) = (&from[place..][..across], &from[tiles + place..][..across]);
                for (pair, (left, right)) in
                    line.as_chunks_mut::<2>().0.iter_mut().zip(left.iter().zip(right))
                {
                    *pair = [*left, *right];
                }
                to.copy_from_slice(&line[..wide]);
            }
        }
        Ok(())
    }
}

/// The weights of a kernel of three by three, turned: `G g Gᵀ`.
fn turned_weights(kernel: &[f32; 9]) -> [f32; 16] {
    let turn = |[a, b, c]: [f32; 3]| [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
    let columns: [[f32; 4]; 3] =
        array::from_fn(|x| turn([kernel[x], kernel[3 + x], kernel[6 + x]]));
    array::from_fn(|kind| turn(columns.map(|column| column[kind / 4]))[kind % 4])
}

/// What lies at the four places of a row or column of as many tiles, turned: `Bᵀ d`.
fn differences(places: [&[f32]; 4], turned: [&mut [f32]; 4]) {
    let tiles = turned[0].len();
    let ([a, b, c, d], [e, f, g, h]) =
        (places.map(|it| &it[..tiles]), turned.map(|it| &mut it[..tiles]));
    for at in 0..tiles {
        e[at] = a[at] - c[at];
        f[at] = b[at] + c[at];
        g[at] = c[at] - b[at];
        h[at] = b[at] - d[at];
    }
}

/// Four products in a row or column of as many tiles, turned back: `Aᵀ m`.
fn sums(products: [&[f32]; 4], places: [&mut [f32]; 2]) {
    let tiles = places[0].len();
    let ([a, b, c, d], [e, f]) =
        (products.map(|it| &it[..tiles]), places.map(|it| &mut it[..tiles]));
    for at in 0..tiles {
        e[at] = a[at] + b[at] + c[at];
        f[at] = b[at] - c[at] - d[at];
    }
}

/// Four equal parts.
fn fourths(values: &mut [f32]) -> [&mut [f32]; 4] {
    let (upper, lower) = values.split_at_mut(values.len() / 2);
    let (quarter, other) = (upper.len() / 2, lower.len() / 2);
    let ((a, b), (c, d)) = (upper.split_at_mut(quarter), lower.split_at_mut(other));
    [a, b, c, d]
}

impl Op for Winograd {
    fn name(&self) -> StaticName {
        "WinogradConvolution".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Winograd {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = inputs[0].to_plain_array_view::<f32>()?;
        let pictures = input.as_slice().context("not row-major")?;
        let [channels, down, wide] = self.layer.output;
        let tiles = self.rows * self.across();
        let mut result = Tensor::zero::<f32>(&[inputs[0].shape()[0], channels, down, wide])?;
        let mut turned = Vec::new();
        for product in &self.products {
            turned.push(product.format.new_packed_buffer(self.layer.input[0], tiles)?);
        }
        let mut products = Tensor::zero::<f32>(&[16, channels, tiles])?;
        let mut scratch = self.products[0].scratch();
        let mut results = result.try_as_plain_ram_mut()?;
        let results = results.as_slice_mut::<f32>()?.chunks_exact_mut(channels * down * wide);
        for (picture, result) in
            pictures.chunks_exact(self.layer.input.iter().product()).zip(results)
        {
            for top in (0..down.div_ceil(2)).step_by(self.rows) {
                // The last band reaches back rather than beyond the last row of tiles.
                let top = top.min(down.div_ceil(2) - self.rows);
                self.turn(picture, top, &mut turned)?;
                for (kind, (product, turned)) in self.products.iter().zip(&turned).enumerate() {
                    let place = (&mut products, kind * channels * tiles, tiles);
                    product.multiply(turned, [], place, &mut *scratch)?;
                }
                let view = products.to_plain_array_view::<f32>()?;
                self.turn_back(view.as_slice().context("not row-major")?, top, result)?;
            }
        }
        Ok(tvec![result.into_tvalue()])
    }
}

impl TypedOp for Winograd {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![self.layer.fact(inputs[0])])
    }

    as_op!();
}
