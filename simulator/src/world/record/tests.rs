use super::*;
use crate::world::synthetic;

#[test]
fn names_become_points_and_back() {
    let record = Record::new(&synthetic::outcomes(400, 1), &Macs::default()).expect("a record");
    let run = record.run("s16/w100/c16/b6").expect("recorded");
    assert_eq!(run, OperatingPoint { split: 0, width: 1, layers: 3, bits: 6 }.into());
    assert_eq!(record.name(run), "s16/w100/c16/b6");
    assert_eq!(record.heads()[&(0, 0)], "s16/w50");
    let image = record.run("image/webp/160/q35").expect("recorded");
    assert_eq!(record.name(image), "image/webp/160/q35");
    let Run::Image(alone) = image else { panic!("{image}") };
    let behind = Run::Image(ImageRun { exit: Some((0, 0)), ..alone });
    assert_eq!(record.name(behind), "image/webp/160/q35 or s16/w50/exit");
    for unknown in ["s16/w100/c99/b6", "image/webp/160/q36", "local"] {
        assert_eq!(record.run(unknown), None, "{unknown}");
    }
}

#[test]
fn layers_that_were_not_recorded_are_as_large_as_the_next() {
    let text = "frame,label,point,bytes,right,confidence\n".to_owned()
        + &(0..64)
            .map(|frame| {
                format!(
                    "{frame},0,s/w1/exit,0,1,0.5\n{frame},0,s/w1/c4/b6,100,1,0.9\n\
                     {frame},0,s/w1/c8/b5,300,1,0.9\n{frame},0,s/w1/c16/b6,500,1,0.9\n"
                )
            })
            .collect::<String>();
    let record =
        Record::new(&Outcomes::parse(&text).expect("rows"), &Macs::default()).expect("a record");
    let run = HeadRun { split: 0, width: 0, bits: 6, layers: 3 };
    assert_eq!(record.layer_ends(run, 0), [100, 500, 500]);
}

#[test]
fn the_ladder_knows_the_even_frames_and_not_the_odd_ones() {
    // Even frames are right exactly where the exit is sure; odd ones never.
    let row = |frame: usize| {
        let sure = frame.is_multiple_of(4);
        let right = u8::from(sure);
        let confidence = if sure { 0.9 } else { 0.1 };
        format!(
            "{frame},0,s/w1/exit,0,{right},{confidence}\n{frame},0,s/w1/c4/b6,100,{right},0.9\n"
        )
    };
    let text = "frame,label,point,bytes,right,confidence\n".to_owned()
        + &(0..800).map(row).collect::<String>();
    let record =
        Record::new(&Outcomes::parse(&text).expect("rows"), &Macs::default()).expect("a record");
    let ladder = record.ladder();
    assert!(ladder.exit_quality(0, Some(0.9)) > 0.9);
    assert!(ladder.quality(0, Some(0.1)) < 0.1);
    let run = record.run("s/w1/c4/b6").expect("recorded");
    assert!(record.expected(run, 0).is_some_and(|expected| expected < 0.1), "as even ones at 0.1");
    assert_eq!(record.expected_exit(0, 0, 0), Some(ladder.exit_quality(0, Some(0.1))));
    assert!((0..record.played()).all(|at| record.exit(0, 0, at).expect("recorded").quality == 0.0));
}

#[test]
fn a_control_variate_is_zero_in_the_mean_and_high_for_sure_exits() {
    let record = Record::new(&synthetic::outcomes(800, 1), &Macs::default()).expect("a record");
    for &(split, width) in record.heads().keys() {
        let image = record.images().next().expect("a picture");
        let behind = ImageRun { image, exit: Some((split, width)) };
        let confidence =
            |at: &usize| record.exit(split, width, *at).map_or(0.0, |exit| exit.confidence);
        let sure = (0..record.played()).max_by(|a, b| confidence(a).total_cmp(&confidence(b)));
        for load in [Load::Head(split, width), Load::Image(behind)] {
            let values = (0..record.played()).map(|at| record.control_variate(load, at));
            let sum = values.fold(ControlVariate::default(), ControlVariate::plus);
            assert!((0..ControlVariate::LEVELS).all(|level| sum.of(level).abs() < 1e-9), "{sum:?}");
            let sure = record.control_variate(load, sure.expect("a frame"));
            assert!(sure.of(ControlVariate::LEVELS - 1) > 0.0, "{sure:?}");
        }
    }
}

#[test]
fn a_picture_without_a_head_is_worth_what_the_even_frames_say_of_it() {
    let row = |frame: usize| {
        // Even frames have 100 bytes and are right every other time, odd ones 900 and never.
        let (bytes, right) = match frame % 4 {
            0 => (100, 1),
            2 => (100, 0),
            _ => (900, 0),
        };
        format!(
            "{frame},0,s/w1/exit,0,1,0.5\n{frame},0,s/w1/c4/b6,9,1,0.9\n\
             {frame},0,image/webp/160/q35,{bytes},{right},0.9\n{frame},0,full,0,1,0.9\n"
        )
    };
    let text = "frame,label,point,bytes,right,confidence\n".to_owned()
        + &(0..64).map(row).collect::<String>();
    let macs = Macs { full: 1_000, ..Macs::default() };
    let record = Record::new(&Outcomes::parse(&text).expect("rows"), &macs).expect("a record");
    let image = record.run("image/webp/160/q35").expect("recorded");
    assert_eq!(record.expected(image, 0), Some(0.5));
    assert_eq!(record.control_variate(image.load(), 0), ControlVariate::default());
    let drawn = record.run_outcome(image, 0).expect("recorded");
    assert_eq!((drawn.bytes, drawn.quality), (900, 0.0));
    assert_eq!(record.expected(Run::Local, 0), Some(1.0));
    assert!(record.ladder().position(Run::Local).is_some());
}

#[test]
fn records_that_cannot_be_simulated_are_refused() {
    let text = |rows: &str| {
        let rows: String = (0..64).map(|frame| rows.replace('#', &frame.to_string())).collect();
        Outcomes::parse(&format!("frame,label,point,bytes,right,confidence\n{rows}")).expect("rows")
    };
    for (rows, expected) in [
        ("#,0,full,0,1,1\n", "no operating point"),
        ("#,0,s/w1/c4/b6,9,1,1\n", "no s/w1/exit"),
        ("#,0,s/w1/exit,0,1,1\n#,0,s/w1/c4/b6,0,1,1\n", "frame 0 has 0 bytes"),
        ("#,0,image/jpeg/9/q9,0,1,1\n", "image/jpeg/9/q9: frame 0 has 0 bytes"),
        ("#,0,s/w1/exit,0,1,1\n#,0,s/w1/c4/b6,200000,1,1\n", "frame 0 has 200000 bytes"),
    ] {
        let error = Record::new(&text(rows), &Macs::default()).expect_err(rows).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let few = Outcomes::parse("frame,label,point,bytes,right,confidence\n0,0,full,0,1,1\n");
    assert!(matches!(
        Record::new(&few.expect("a row"), &Macs::default()),
        Err(RecordError::Few(1))
    ));
}
