//! The curves of the surge, as one picture.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::surge::{Counts, Curve};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (1_200, 860);
const FONT: &str = "sans-serif";

const GREY: RGBColor = RGBColor(150, 150, 150);
const ORANGE: RGBColor = RGBColor(214, 95, 14);
const GREEN: RGBColor = RGBColor(44, 140, 60);
const LINE: RGBColor = RGBColor(31, 119, 180);

/// A line in a panel.
struct Line {
    name: &'static str,
    color: RGBColor,
    /// The value of an interval of such a length in seconds, if it has one.
    value: fn(&Counts, f64) -> Option<f64>,
}

const RATES: [Line; 4] = [
    Line {
        name: "offered",
        color: GREY,
        value: |counts, seconds| Some(counts.offered as f64 / seconds),
    },
    Line {
        name: "served",
        color: LINE,
        value: |counts, seconds| Some(counts.served as f64 / seconds),
    },
    Line {
        name: "failed",
        color: ORANGE,
        value: |counts, seconds| Some(counts.failed as f64 / seconds),
    },
    Line {
        name: "busy",
        color: GREEN,
        value: |counts, seconds| Some(counts.busy as f64 / seconds),
    },
];

const LATENCIES: [Line; 2] = [
    Line {
        name: "p99",
        color: ORANGE,
        value: |counts, _| counts.latency(0.99).map(milliseconds),
    },
    Line {
        name: "p50",
        color: LINE,
        value: |counts, _| counts.latency(0.5).map(milliseconds),
    },
];

const WORKERS: [Line; 1] = [Line {
    name: "workers",
    color: LINE,
    value: |counts, _| Some(counts.workers as f64),
}];

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Writes the picture, a self-contained SVG: a column for each curve.
pub fn draw(path: &Path, transport: &str, curves: &[Curve]) -> Drawn {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!(
        "A step from 10 to 300 calls a second of 50 ms each, {}",
        over(transport)
    );
    let root = root.titled(&title, (FONT, 20))?;
    let columns = root.split_evenly((1, curves.len()));
    for (column, curve) in columns.iter().zip(curves) {
        let panels = column.split_evenly((3, 1));
        let name = curve.name;
        plot(
            &panels[0],
            &format!("{name}: calls a second"),
            curve,
            400.0,
            &RATES,
        )?;
        let title = format!("{name}: latency of served calls in ms");
        plot(&panels[1], &title, curve, 1_100.0, &LATENCIES)?;
        plot(
            &panels[2],
            &format!("{name}: workers"),
            curve,
            35.0,
            &WORKERS,
        )?;
    }
    root.present()?;
    Ok(())
}

fn over(transport: &str) -> String {
    match transport {
        "memory" => "in memory".to_owned(),
        other => format!("over {other}"),
    }
}

/// Draws the lines of a curve, by seconds, up to a value.
fn plot(area: &Area<'_>, title: &str, curve: &Curve, most: f64, lines: &[Line]) -> Drawn {
    let interval = curve.interval.as_secs_f64();
    let length = curve.counts.len() as f64 * interval;
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 15))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..length, 0.0..most)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style((FONT, 12))
        .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for line in lines {
        let values: Vec<Option<(f64, f64)>> = (1..)
            .zip(&curve.counts)
            .map(|(end, counts)| {
                let value = (line.value)(counts, interval)?;
                Some((f64::from(end) * interval, value.min(most)))
            })
            .collect();
        let style = line.color.stroke_width(2);
        // A gap where there is no value.
        let parts = values.split(Option::is_none);
        let parts = parts.map(|part| {
            PathElement::new(part.iter().flatten().copied().collect::<Vec<_>>(), style)
        });
        chart
            .draw_series(parts)?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .label_font((FONT, 12))
            .draw()?;
    }
    Ok(())
}
