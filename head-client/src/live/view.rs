//! The view of a run: what is kept of its frames, and how it is drawn.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use isthmus_proto::Bitrate;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, SparklineBar};

use crate::controller::LinkEstimate;
use crate::histogram::Histogram;
use crate::report::FrameReport;
use crate::text;

/// Frames that the curves go back; wider terminals are not filled.
const RECENT: usize = 400;
/// Lines of the log that are shown.
pub(super) const LOG_LINES: usize = 4;

/// What is shown of a frame when it has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Since the run began.
    pub at: Duration,
    /// What was sent, or the head that was run.
    pub point: Option<String>,
    /// Why, or why not.
    pub reason: String,
    /// From capture to output; `None` without an answer.
    pub latency: Option<Duration>,
    /// Bytes sent.
    pub bytes: Option<u64>,
    /// Whether it was sent and no network answer came in time.
    pub missed: bool,
    /// Whether an answer came in time.
    pub on_time: bool,
    /// How good the answer is, 0 to 1, where the truth is known.
    pub quality: Option<f32>,
    /// The controller's link estimate.
    pub estimate: Option<LinkEstimate>,
    /// What the link can carry, where that is known: in a simulation.
    pub capacity: Option<Bitrate>,
}

impl Seen {
    /// What a client's report says, `at` so long after the run began.
    pub fn of_report(report: &FrameReport, at: Duration) -> Seen {
        Seen {
            at,
            point: text::point(report),
            reason: report.reason.clone(),
            latency: report.capture_to_output_ms.map(|ms| Duration::from_secs_f64(ms / 1e3)),
            bytes: report.bytes.map(|bytes| bytes as u64),
            missed: report.is_missed(),
            on_time: report.on_time,
            quality: report.has_truth().then(|| report.quality.unwrap_or(0.0)),
            estimate: report.estimate,
            capacity: None,
        }
    }
}

/// What is shown of a run.
#[derive(Clone, Debug)]
pub struct Live {
    title: String,
    deadline: Duration,
    last: Seen,
    frames: u64,
    sent: u64,
    missed: u64,
    on_time: u64,
    bytes: u64,
    known: u64,
    quality: f64,
    reasons: BTreeMap<String, u64>,
    latency: Histogram,
    /// Of the latest frames.
    recent: VecDeque<Recent>,
}

/// A frame as the curves show it.
#[derive(Clone, Copy, Debug)]
struct Recent {
    latency_ms: Option<u64>,
    missed: bool,
    estimate_kbits: Option<u64>,
    capacity_kbits: Option<u64>,
}

impl Live {
    /// A run that has not begun. `title` says what it is, and `deadline` how long a frame may take.
    pub fn new(title: String, deadline: Duration) -> Self {
        Live {
            title,
            deadline,
            last: Seen::default(),
            frames: 0,
            sent: 0,
            missed: 0,
            on_time: 0,
            bytes: 0,
            known: 0,
            quality: 0.0,
            reasons: BTreeMap::new(),
            latency: Histogram::default(),
            recent: VecDeque::new(),
        }
    }

    /// Frames taken in.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Takes in a frame.
    pub fn record(&mut self, seen: Seen) {
        self.frames += 1;
        self.sent += u64::from(seen.bytes.is_some());
        self.missed += u64::from(seen.missed);
        self.on_time += u64::from(seen.on_time);
        self.bytes += seen.bytes.unwrap_or(0);
        self.known += u64::from(seen.quality.is_some());
        if let Some(quality) = seen.quality.filter(|_| seen.on_time) {
            self.quality += f64::from(quality);
        }
        *self.reasons.entry(seen.reason.clone()).or_default() += 1;
        if let Some(latency) = seen.latency {
            self.latency.record(latency.as_micros() as u64);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        let kbits = |rate: Bitrate| rate.as_bps() / 1_000;
        self.recent.push_back(Recent {
            latency_ms: seen.latency.map(|latency| latency.as_millis() as u64),
            missed: seen.missed,
            estimate_kbits: seen.estimate.map(|estimate| kbits(estimate.rate)),
            capacity_kbits: seen.capacity.map(kbits),
        });
        self.last = seen;
    }

    /// Draws all of it, the latest lines of the log below.
    pub fn draw(&self, frame: &mut Frame<'_>, log: &[String]) {
        let log_height = if log.is_empty() { 0 } else { LOG_LINES as u16 + 2 };
        let rows = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(4),
            Constraint::Min(3),
            Constraint::Min(3),
            Constraint::Length(5),
            Constraint::Length(log_height),
        ]);
        let [title, now, rate, latency, totals, lines] = rows.areas(frame.area());
        let at = format!("  {:.1} s, {} frames", self.last.at.as_secs_f64(), self.frames);
        let name = Span::from(self.title.as_str()).bold();
        frame.render_widget(Line::from(vec![name, at.into()]), title);
        frame.render_widget(Line::from("Ctrl-C ends").right_aligned().dim(), title);
        self.draw_now(frame, now);
        self.draw_rates(frame, rate);
        self.draw_latency(frame, latency);
        self.draw_totals(frame, totals);
        if !log.is_empty() {
            let lines_of_log: Vec<Line<'_>> =
                log.iter().map(|it| Line::from(it.trim_end())).collect();
            let block = Block::bordered().title("log");
            frame.render_widget(Paragraph::new(lines_of_log).block(block), lines);
        }
    }

    fn draw_now(&self, frame: &mut Frame<'_>, area: Rect) {
        let [link, choice] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(area);
        let Seen { estimate, point, reason, bytes, missed, .. } = &self.last;
        let lines = vec![
            Line::from(format!("rate {}", or_dash(estimate.map(|estimate| estimate.rate)))),
            Line::from(format!(
                "round trip {}",
                or_dash(estimate.map(|estimate| ms(estimate.round_trip)))
            )),
        ];
        let block = Block::bordered().title("link, as the controller sees it");
        frame.render_widget(Paragraph::new(lines).block(block), link);
        let style = if *missed { Style::new().red() } else { Style::new() };
        let bytes = bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        let lines = vec![
            Line::from(format!("{}{bytes}", point.as_deref().unwrap_or("nothing"))),
            Line::styled(reason.as_str(), style),
        ];
        let block = Block::bordered().title("choice, and why");
        frame.render_widget(Paragraph::new(lines).block(block), choice);
    }

    /// The controller's estimate, and beside it what the link can carry, where that is known; both
    /// to one scale.
    fn draw_rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let all = self.recent.iter().flat_map(|it| [it.estimate_kbits, it.capacity_kbits]);
        let most = all.flatten().max().unwrap_or(0);
        let (estimated, carried) = match self.last.capacity {
            None => (area, None),
            Some(capacity) => {
                let halves = Layout::horizontal([Constraint::Percentage(50); 2]);
                let [estimated, carried] = halves.areas(area);
                (estimated, Some((carried, capacity)))
            }
        };
        let rate = self.last.estimate.map(|estimate| estimate.rate);
        let title = format!("estimated rate: {}", or_dash(rate));
        self.curve(frame, estimated, title, most, |it| (it.estimate_kbits, Color::Yellow));
        if let Some((area, capacity)) = carried {
            let title = format!("what the link carries: {capacity}");
            self.curve(frame, area, title, most, |it| (it.capacity_kbits, Color::Green));
        }
    }

    fn draw_latency(&self, frame: &mut Frame<'_>, area: Rect) {
        let title = format!(
            "from capture to output: {}; full height is the deadline, {} ms",
            or_dash(self.last.latency.map(ms)),
            self.deadline.as_millis()
        );
        let most = self.deadline.as_millis() as u64;
        self.curve(frame, area, title, most, |it| {
            (it.latency_ms, if it.missed { Color::Red } else { Color::Blue })
        });
    }

    fn draw_totals(&self, frame: &mut Frame<'_>, area: Rect) {
        let quantile =
            |q| or_dash(self.latency.quantile(q).map(|us| ms(Duration::from_micros(us))));
        let ratio = percent(self.missed, self.sent);
        let misses = format!("missed {} of {} sent ({ratio})", self.missed, self.sent);
        let style = if self.missed > 0 { Style::new().red() } else { Style::new().green() };
        let right = match self.known {
            0 => String::new(),
            known => format!(", right and in time {}", percent(self.quality.round() as u64, known)),
        };
        let mut reasons: Vec<(&String, &u64)> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let reasons = reasons.iter().map(|(reason, count)| format!("{reason} {count}"));
        let lines = vec![
            Line::from(vec![
                Span::styled(misses, style),
                format!("   in time {}{right}", percent(self.on_time, self.frames)).into(),
            ]),
            Line::from(format!(
                "p50 {}, p95 {}   {} bytes, {} a frame",
                quantile(0.5),
                quantile(0.95),
                self.bytes,
                self.bytes / self.frames.max(1)
            )),
            Line::from(reasons.collect::<Vec<_>>().join(", ")),
        ];
        let block = Block::bordered().title("so far");
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    /// The latest values that have room, at the right edge the last; `most` fills the height.
    fn curve(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        title: String,
        most: u64,
        value: impl Fn(&Recent) -> (Option<u64>, Color),
    ) {
        let room = usize::from(area.width.saturating_sub(2));
        let latest = self.recent.iter().skip(self.recent.len().saturating_sub(room));
        let bars = latest.map(|it| {
            let (value, colour) = value(it);
            SparklineBar::from(value).style(Some(Style::new().fg(colour)))
        });
        let line = Sparkline::default().data(bars).max(most);
        frame.render_widget(line.block(Block::bordered().title(title)), area);
    }
}

fn ms(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1e3)
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1}%", 100.0 * part as f64 / whole.max(1) as f64)
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_proto::Arm;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(live: &Live, log: &[String], width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
        terminal.draw(|frame| live.draw(frame, log)).expect("memory");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
    }

    fn seen(at: u64, missed: bool) -> Seen {
        let rate = Bitrate::from_bps(1_500_000);
        Seen {
            at: Duration::from_millis(at),
            point: Some("s16/w100/c16/b6".into()),
            reason: if missed { "deadline" } else { "in time" }.into(),
            latency: Some(Duration::from_millis(if missed { 295 } else { 80 })),
            bytes: Some(700),
            missed,
            on_time: true,
            quality: Some(if missed { 0.0 } else { 1.0 }),
            estimate: Some(LinkEstimate { rate, round_trip: Duration::from_millis(42) }),
            capacity: None,
        }
    }

    #[test]
    fn link_choice_latency_misses_and_log_are_shown() {
        let mut live = Live::new("street, mpc".into(), Duration::from_millis(300));
        (0..59).for_each(|frame| live.record(seen(100 * frame, false)));
        live.record(seen(5_900, true));
        let log = ["WARN connection lost".to_owned(), "WARN still no connection\n".to_owned()];
        let text = screen(&live, &log, 100, 28);
        for shown in [
            "street, mpc  5.9 s, 60 frames",
            "rate 1.50 Mbit/s",
            "round trip 42.0 ms",
            "s16/w100/c16/b6, 700 bytes",
            "│deadline",
            "estimated rate: 1.50 Mbit/s",
            "from capture to output: 295.0 ms; full height is the deadline, 300 ms",
            "missed 1 of 60 sent (1.7%)   in time 100.0%, right and in time 98.3%",
            "42000 bytes, 700 a frame",
            "in time 59, deadline 1",
            "│WARN still no connection",
        ] {
            assert!(text.contains(shown), "{shown} is not on\n{text}");
        }
    }

    #[test]
    fn what_the_link_carries_stands_beside_the_estimate_where_it_is_known() {
        let mut live = Live::new("outage".into(), Duration::from_millis(300));
        let capacity = Some(Bitrate::from_bps(3_000_000));
        (0..9).for_each(|frame| live.record(Seen { capacity, ..seen(frame, false) }));
        let text = screen(&live, &[], 80, 24);
        assert!(text.contains("what the link carries: 3.00 Mbit/s"), "{text}");
        // To one scale, half as high.
        let row = text.lines().find(|row| row.contains("│█████████")).expect("the curves");
        assert!(!row.starts_with("│█"), "{text}");
    }

    #[test]
    fn a_run_without_frames_and_a_small_terminal_are_drawn_too() {
        let mut live = Live::new("fixed".into(), Duration::from_millis(300));
        assert!(screen(&live, &[], 80, 24).contains("rate –"));
        (0..2 * RECENT as u64).for_each(|frame| live.record(seen(frame, false)));
        assert_eq!(live.recent.len(), RECENT);
        for (width, height) in [(1, 1), (10, 5), (40, 10), (200, 60)] {
            screen(&live, &["a line".into()], width, height);
        }
    }

    #[test]
    fn a_report_is_shown_as_it_is_printed() {
        let report = FrameReport {
            arm: Some(Arm::Exit),
            split: Some("s16".into()),
            width: Some("w50".into()),
            channels: Some(8),
            bits: Some(4),
            bytes: Some(300),
            label: Some("stop".into()),
            truth: Some("stop".into()),
            quality: Some(1.0),
            capture_to_output_ms: Some(95.0),
            on_time: true,
            reason: "deadline".into(),
            ..FrameReport::default()
        };
        let seen = Seen::of_report(&report, Duration::from_secs(3));
        assert_eq!(seen.point.as_deref(), Some("s16/w50/c8/b4"));
        assert!(seen.missed && seen.on_time && seen.quality == Some(1.0));
        let answered = FrameReport { arm: Some(Arm::Image), ..report };
        assert!(!Seen::of_report(&answered, Duration::ZERO).missed);
    }
}
