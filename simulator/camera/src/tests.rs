//! What every user of the camera relies on.

use super::*;

fn camera(seed: u64) -> Camera {
    let config = CameraConfig { seed, ..CameraConfig::default() };
    Camera::new(config).expect("the default configuration is in range")
}

/// Runs through the video without rendering it.
fn walk(seed: u64, frames: usize, mut look: impl FnMut(&Camera, &View)) {
    let mut camera = camera(seed);
    for _ in 0..frames {
        look(&camera, &camera.config.view(&camera.street.ride, camera.step));
        camera.advance();
    }
}

#[test]
fn a_seed_determines_the_frames() {
    assert!(camera(5).take(3).eq(camera(5).take(3)));
    assert!(camera(5).next() != camera(6).next());
}

#[test]
fn skipping_leads_to_the_same_frames() {
    let mut skipping = camera(7);
    let mut walking = camera(7);
    (0..40).for_each(|_| walking.advance());
    assert_eq!(skipping.nth(40), walking.next());
    assert_eq!(skipping.next().map(|frame| frame.index), Some(41));
}

#[test]
fn all_classes_come_about_equally_often() {
    let mut frames = vec![0_u32; Sign::ALL.len()];
    walk(1, 6000, |camera, _| frames[camera.encounter.sign.class()] += 1);
    assert!(frames.iter().all(|&count| (150..450).contains(&count)), "{frames:?}");

    let mut first_minute = std::collections::BTreeSet::new();
    walk(2, 600, |camera, _| {
        first_minute.insert(camera.encounter.sign);
    });
    assert_eq!(first_minute.len(), Sign::ALL.len());
}

#[test]
fn signs_stay_in_the_square_and_in_sight() {
    walk(3, 2000, |camera, view| {
        let bounds = camera.encounter.bounds(view);
        assert!(camera.config.square().contains(&bounds), "{bounds:?}");
        assert!((8.0..=90.0).contains(&bounds.height), "{bounds:?}");
        let visibility = camera.encounter.visibility(view);
        assert!((0.4..=1.0).contains(&visibility), "{visibility}");
    });
}

#[test]
fn a_sign_comes_nearer_without_leaps() {
    let mut last: Option<(u64, [f32; 2], f32)> = None;
    walk(4, 2000, |camera, view| {
        let [x, y] = camera.encounter.middle(view);
        let depth = view.depth([0.0, 0.0, camera.encounter.distance()]);
        if let Some((seen, before, far)) = last
            && camera.seen == seen + 1
        {
            let leap = (x - before[0]).hypot(y - before[1]);
            assert!(leap < 50.0, "frame {}: {leap} pixels", camera.index);
            assert!(depth < far, "frame {}", camera.index);
        }
        last = Some((camera.seen, [x, y], depth));
    });
}

#[test]
fn the_box_is_where_the_sign_is() {
    let mut camera = camera(9);
    for _ in 0..12 {
        let view = camera.config.view(&camera.street.ride, camera.step);
        let bounds = camera.encounter.bounds(&view);
        let with = camera.paint(true).expect("the frame has a size");
        let without = camera.paint(false).expect("the frame has a size");
        let width = camera.config.width as usize;
        let differing: Vec<[f32; 2]> = with
            .pixels()
            .iter()
            .zip(without.pixels())
            .enumerate()
            .filter(|(_, (with, without))| with != without)
            .map(|(place, _)| [(place % width) as f32 + 0.5, (place / width) as f32 + 0.5])
            .collect();
        let near = BoundingBox {
            x: bounds.x - 1.5,
            y: bounds.y - 1.5,
            width: bounds.width + 3.0,
            height: bounds.height + 3.0,
        };
        assert!(
            differing
                .iter()
                .all(|&[x, y]| { near.contains(&BoundingBox { x, y, width: 0.0, height: 0.0 }) })
        );
        let seen = camera.encounter.visibility(&view) * bounds.width * bounds.height;
        assert!(differing.len() as f32 > 0.3 * seen, "frame {}", camera.index);
        (0..17).for_each(|_| camera.advance());
    }
}

#[test]
fn any_shape_of_frame_can_be_rendered() {
    for (width, height, frames_per_second) in [(32, 32, 1.0), (500, 40, 240.0), (60, 300, 25.0)] {
        let config = CameraConfig { width, height, frames_per_second, seed: 1 };
        let frame = Camera::new(config).ok().and_then(|mut camera| camera.nth(3));
        assert_eq!(frame.map(|frame| frame.rgb.len()), Some((3 * width * height) as usize));
    }
}

#[test]
fn impossible_configurations_are_refused() {
    let config = CameraConfig::default();
    let size = Camera::new(CameraConfig { width: 0, ..config });
    assert_eq!(size.err(), Some(ConfigError::Size { width: 0, height: 240 }));
    let rate = Camera::new(CameraConfig { frames_per_second: f32::NAN, ..config });
    assert!(matches!(rate, Err(ConfigError::Rate(_))));
}
