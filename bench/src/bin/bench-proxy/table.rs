//! What was measured, against what was to be reached.

use crate::{
    load::{Pace, Round},
    system::Kind,
};

/// One round of one system.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Calls in all, those before the round counted included.
    pub calls: u64,
    open_p50: f64,
    open_p99: f64,
    open_cpu: f64,
    max_rate: f64,
    max_p99: f64,
    max_cpu: f64,
    max_busy: f64,
}

impl Sample {
    /// Takes the figures of one pace. Microseconds.
    pub fn take(&mut self, pace: Pace, round: &Round, cpu: f64, busy: f64) {
        match pace {
            Pace::Open(_) => {
                (self.open_p50, self.open_p99) = (round.quantile(500), round.quantile(990));
                self.open_cpu = cpu;
            }
            Pace::Closed => {
                (self.max_rate, self.max_p99) = (round.rate(), round.quantile(990));
                (self.max_cpu, self.max_busy) = (cpu, busy);
            }
        }
    }
}

/// The rounds of one system.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Which.
    pub kind: Kind,
    /// Its rounds, in order.
    pub samples: Vec<Sample>,
    /// Its memory after the last. KiB.
    pub rss: Option<u64>,
}

impl Figures {
    /// Nothing measured yet.
    pub const fn new(kind: Kind) -> Self {
        Self { kind, samples: Vec::new(), rss: None }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }

    /// The median of the rounds' differences: each to the same round of `other`.
    fn over(&self, other: &Self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(
            self.samples
                .iter()
                .zip(&other.samples)
                .map(|(own, other)| of(own) - of(other))
                .collect(),
        )
    }

    /// The median of the rounds' ratios.
    fn ratio(&self, other: &Self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(
            self.samples
                .iter()
                .zip(&other.samples)
                .map(|(own, other)| of(own) / of(other))
                .collect(),
        )
    }
}

/// The middle, or the mean of the two middles.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), half.checked_sub(1).and_then(|below| values.get(below))) {
        (Some(middle), Some(below)) if values.len() % 2 == 0 => (middle + below) / 2.0,
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

/// Prints every system, and each target with what was reached.
pub fn print(all: &[Figures], sync: &[f64]) {
    let of = |kind: Kind| all.iter().find(|figures| figures.kind == kind);
    let (Some(direct), Some(haproxy), Some(envoy)) =
        (of(Kind::Direct), of(Kind::Haproxy), of(Kind::Envoy))
    else {
        return;
    };
    let sync = median(sync.to_vec());
    println!(
        "direct: p50 {:.0} µs, p99 {:.0} µs at 1,000/s; fdatasync of 4 KiB within a file: p50 {sync:.0} µs",
        direct.median(|s| s.open_p50),
        direct.median(|s| s.open_p99)
    );
    println!(
        "{:15} {:>12} {:>12} {:>12} {:>10} {:>12} {:>12} {:>10} {:>9}",
        "",
        "added p50 µs",
        "added p99 µs",
        "CPU µs/call",
        "calls/s",
        "p99 µs",
        "CPU µs/call",
        "load core",
        "RSS MiB"
    );
    println!("{:15} {:>38} {:>46}", "", "at 1,000 calls/s", "at saturation");
    for figures in all {
        println!(
            "{:15} {:>12.0} {:>12.0} {:>12.0} {:>10.0} {:>12.0} {:>12.1} {:>8.0} % {:>9}",
            figures.kind.name(),
            figures.over(direct, |s| s.open_p50),
            figures.over(direct, |s| s.open_p99),
            figures.median(|s| s.open_cpu),
            figures.median(|s| s.max_rate),
            figures.median(|s| s.max_p99),
            figures.median(|s| s.max_cpu),
            figures.median(|s| s.max_busy) * 100.0,
            figures.rss.map_or("".into(), |kib| format!("{:.1}", kib as f64 / 1_024.0)),
        );
    }
    for (audit, allowance) in [("buffered", 60.0), ("strict", 60.0 + sync)] {
        let Some(aegis) = of(Kind::Aegis(audit)) else { continue };
        let name = aegis.kind.name();
        verdict(
            &format!("{name}: p50 over haproxy's, µs"),
            aegis.over(haproxy, |s| s.open_p50),
            allowance,
            true,
        );
        verdict(
            &format!("{name}: CPU per call, of Envoy's"),
            aegis.ratio(envoy, |s| s.max_cpu),
            0.6,
            true,
        );
        verdict(
            &format!("{name}: calls/s, of Envoy's"),
            aegis.ratio(envoy, |s| s.max_rate),
            1.7,
            false,
        );
    }
    println!(
        "verdicts: every answer of every round was right, no forbidden call arrived, no lying header passed"
    );
}

/// One target.
pub fn verdict(what: &str, value: f64, target: f64, at_most: bool) {
    let met = if at_most { value <= target } else { value >= target };
    println!(
        "{} {what}: {value:.2} (target {} {target:.2})",
        if met { "met   " } else { "MISSED" },
        if at_most { "at most" } else { "at least" }
    );
}
