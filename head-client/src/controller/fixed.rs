//! The controller that does not adapt: the same run for every frame.

use std::time::Duration;

use isthmus_proto::Timestamp;

use super::decision::{
    Choice, Controller, HeadDecision, HeadView, NetworkSample, NetworkTimeout, SendDecision,
    SendView, Sending,
};
use super::run::{HeadRun, Run};

/// Always does the same, whatever the link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    run: Run,
    sends: bool,
}

impl Fixed {
    /// Always runs the same and sends all of its output: every layer of an operating point, or a
    /// compressed picture.
    pub fn new(run: impl Into<Run>) -> Fixed {
        Fixed { run: run.into(), sends: true }
    }

    /// Always answers with the exit of the same head, and sends nothing.
    pub fn exit(run: HeadRun) -> Fixed {
        Fixed { run: Run::Head(run), sends: false }
    }
}

impl Controller for Fixed {
    fn on_link_up(&mut self, _now: Timestamp, _round_trip: Option<Duration>) {}

    fn decide_head(&mut self, _now: Timestamp, _view: &HeadView) -> HeadDecision {
        HeadDecision { run: Some(self.run), reason: Choice::Fixed }
    }

    fn decide_send(&mut self, _now: Timestamp, view: &SendView<'_>) -> SendDecision {
        let layers = u8::try_from(view.layer_ends.len()).unwrap_or(u8::MAX);
        let sending = if self.sends { Sending::Layers(layers) } else { Sending::Exit };
        SendDecision { sending, reason: Choice::Fixed }
    }

    fn on_reply(&mut self, _now: Timestamp, _sample: &NetworkSample) {}

    fn on_timeout(&mut self, _now: Timestamp, _timeout: &NetworkTimeout) {}
}
