//! What a device sends of a picture.

use std::time::Duration;

use anyhow::Context;
use isthmus_models::Bundle;
use isthmus_proto::{
    Coded, Envelope, ImageFormat, OperatingPoint, write_image_packet, write_packet,
};

/// Time left in the envelopes, the default deadline.
const TIME_LEFT: Duration = Duration::from_millis(300);

/// Latents, coded at a point, and the bytes of their envelope and packet.
pub(super) fn features(
    bundle: &Bundle,
    point: OperatingPoint,
    latents: &[f32],
) -> anyhow::Result<(Coded, usize)> {
    let codec = bundle.codec(point.split, point.width, point.bits);
    let codec = codec.context("a point without codec")?;
    let coded = codec.encode(&codec.quantise(latents, point.layers.into())?)?;
    let mut frame = envelope();
    write_packet(&mut frame, 0, &bundle.digest(), point, &coded);
    Ok((coded, frame.len()))
}

/// The latents that a server has when a point has come.
pub(super) fn arrived(
    bundle: &Bundle,
    point: OperatingPoint,
    latents: &[f32],
) -> anyhow::Result<Vec<f32>> {
    let codec = bundle.codec(point.split, point.width, point.bits);
    let codec = codec.context("a point without codec")?;
    let mut arrived = Vec::new();
    codec.dequantise(&codec.quantise(latents, point.layers.into())?, &mut arrived)?;
    Ok(arrived)
}

/// Bytes of a compressed picture's envelope and packet.
pub(super) fn image_bytes(bundle: &Bundle, format: ImageFormat, file: &[u8]) -> usize {
    let mut frame = envelope();
    write_image_packet(&mut frame, 0, &bundle.digest(), format, file);
    frame.len()
}

fn envelope() -> Vec<u8> {
    let mut frame = Vec::new();
    Envelope { frame: 0, time_left: TIME_LEFT, probe: false }.write(&mut frame);
    frame
}
