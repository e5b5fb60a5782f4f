//! The report of all figures, as one picture.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::figure::Figure;
use crate::growth::Sweep;
use crate::{Scenario, Transport};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (1_200, 1_040);
const FONT: &str = "sans-serif";

/// A named curve.
struct Curve {
    name: String,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// Writes the report, a self-contained SVG.
pub fn write(path: &Path, compared: &[Figure], sweeps: &[Sweep]) -> Drawn {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = "coney over RabbitMQ on the same machine: payloads of 200 bytes, typed handlers";
    let root = root.titled(title, (FONT, 20))?;
    let panels = root.split_evenly((3, 2));
    let latencies: Vec<Curve> = compared.iter().filter_map(latencies).collect();
    let quantiles = "latency in ms, by quantile: 1 in so many is slower";
    plot(&panels[0], quantiles, &latencies)?;
    let of = |what: &str, value: fn(&Figure) -> f64| -> Vec<Curve> {
        let is_it = |sweep: &&Sweep| sweep.of == what && sweep.transport == Transport::Amqp;
        let sweeps = sweeps.iter().filter(is_it);
        sweeps
            .map(|sweep| Curve {
                name: sweep.scenario.name(),
                color: color(sweep.scenario),
                points: sweep
                    .points
                    .iter()
                    .map(|(at, figure)| (*at as f64, value(figure)))
                    .collect(),
            })
            .collect()
    };
    plot(
        &panels[1],
        "calls a second, by callers",
        &of("callers", Figure::rate),
    )?;
    plot(
        &panels[2],
        "p99 in ms, by callers",
        &of("callers", |it| it.micros(0.99) / 1e3),
    )?;
    plot(
        &panels[3],
        "resident MiB, by callers",
        &of("callers", Figure::resident_mib),
    )?;
    plot(
        &panels[4],
        "calls a second, by bytes of payload",
        &of("payload", Figure::rate),
    )?;
    plot(
        &panels[5],
        "calls a second, by services in a process",
        &of("services", Figure::rate),
    )?;
    root.present()?;
    Ok(())
}

fn color(scenario: Scenario) -> RGBColor {
    match scenario {
        Scenario::Bare => RGBColor(130, 130, 130),
        Scenario::Shared => RGBColor(165, 165, 165),
        Scenario::Direct => RGBColor(200, 200, 200),
        Scenario::Raw => RGBColor(148, 103, 189),
        Scenario::Call => RGBColor(31, 119, 180),
        Scenario::Coalesced => RGBColor(214, 95, 14),
        Scenario::Batch => RGBColor(44, 140, 60),
    }
}

/// Returns the latency distribution of a figure with 64 callers, or of batches.
fn latencies(figure: &Figure) -> Option<Curve> {
    let shape = figure.shape;
    let is_batch = shape.scenario == Scenario::Batch;
    if shape.transport == Transport::Memory || (shape.callers != 64 && !is_batch) {
        return None;
    }
    if is_batch && shape.callers < 16 {
        return None;
    }
    let slower = [
        2.0, 4.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4,
    ];
    let points = slower.map(|one_in: f64| (one_in, figure.micros(1.0 - 1.0 / one_in) / 1e3));
    let name = format!("{}, {:.0}/s", shape.scenario.name(), figure.rate());
    Some(Curve {
        name,
        color: color(shape.scenario),
        points: points.to_vec(),
    })
}

/// Draws curves with logarithmic axes.
fn plot(area: &Area<'_>, title: &str, curves: &[Curve]) -> Drawn {
    let falls = |curve: &Curve| {
        let ends = curve.points.first().zip(curve.points.last());
        ends.is_some_and(|(first, last)| last.1 < first.1)
    };
    // The legend goes to the corner without curves.
    let legend = match curves.iter().any(falls) {
        true => SeriesLabelPosition::UpperRight,
        false => SeriesLabelPosition::UpperLeft,
    };
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let bounds = |axis: fn(&(f64, f64)) -> f64| {
        let values = || points().map(axis);
        let (low, high) = (
            values().fold(f64::MAX, f64::min),
            values().fold(0.0, f64::max),
        );
        // An axis has marks at powers of ten only, so it must contain at least one.
        let decade = 10_f64.powf(low.log10().floor());
        let low = if high / low < 10.0 { decade } else { low };
        (low * 0.8)..(high * 1.25)
    };
    if points().next().is_none() {
        return Ok(()); // not measured in this run
    }
    let (x, y) = (bounds(|point| point.0), bounds(|point| point.1));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 15))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style((FONT, 12))
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for curve in curves {
        let color = curve.color;
        chart
            .draw_series(LineSeries::new(
                curve.points.iter().copied(),
                color.stroke_width(2),
            ))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        let dots = curve
            .points
            .iter()
            .map(|&point| Circle::new(point, 3, color.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 12))
        .draw()?;
    Ok(())
}

/// Formats a value for an axis.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.0}M", value / 1e6),
        value if value >= 1e3 => format!("{:.0}k", value / 1e3),
        value if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}
