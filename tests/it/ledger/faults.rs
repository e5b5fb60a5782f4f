//! The faults of the ledger: a schedule of lost connections and restarts, from a seed.

use std::thread;
use std::time::Duration;

use crate::support::proxy::{Mode, Proxy};
use crate::support::server::Server;

/// A broker, three proxies in front of it, and the faults of both.
pub struct Faults {
    random: fastrand::Rng,
    rabbit: Server,
    proxies: [Proxy; 3],
}

impl Faults {
    pub fn start(seed: u64) -> Self {
        let rabbit = Server::rabbitmq();
        let proxies = [(); 3].map(|()| Proxy::start(rabbit.url()));
        Self {
            random: fastrand::Rng::with_seed(seed),
            rabbit,
            proxies,
        }
    }

    /// Returns the URL of the broker, and those of the proxies.
    pub fn urls(&self) -> (&str, [&str; 3]) {
        let [a, b, c] = &self.proxies;
        (self.rabbit.url(), [&a.url, &b.url, &c.url])
    }

    /// Waits for a moment, then causes a fault and ends it; returns its name.
    pub fn next(&mut self) -> String {
        thread::sleep(self.millis(500..3_000));
        let which = self.random.usize(..self.proxies.len());
        let proxy = &self.proxies[which];
        match self.random.u32(..20) {
            0..=5 => {
                proxy.cut();
                format!("connection {which} is cut")
            }
            6..=9 => {
                let modes = [Mode::Swallow, Mode::Stall, Mode::Delay, Mode::Slice];
                let mode = modes[self.random.usize(..modes.len())];
                let ways = self.random.u32(1..4);
                let length = self.millis(200..3_000);
                let proxy = &self.proxies[which];
                if ways & 1 != 0 {
                    proxy.forth(mode);
                }
                if ways & 2 != 0 {
                    proxy.back(mode);
                }
                thread::sleep(length);
                proxy.both(Mode::Pass);
                // The swallowed bytes are missing from the stream.
                proxy.cut();
                format!("connection {which}: {mode:?} for {length:?}")
            }
            10..=12 => {
                self.rabbit.ctl(&["close_all_connections", "ledger"]);
                "every connection is closed".to_owned()
            }
            13..=14 => {
                self.rabbit.pause();
                let length = self.millis(500..3_500);
                thread::sleep(length);
                self.rabbit.resume();
                format!("frozen for {length:?}")
            }
            15..=16 => {
                self.rabbit
                    .ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
                thread::sleep(self.millis(500..2_000));
                self.rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
                "a memory alarm".to_owned()
            }
            17 => {
                self.rabbit.ctl(&["stop_app"]);
                self.rabbit.ctl(&["start_app"]);
                "stopped and started".to_owned()
            }
            _ => {
                self.rabbit.kill();
                self.rabbit.start_again();
                "killed and restarted".to_owned()
            }
        }
    }

    pub fn heal(&mut self) {
        for proxy in &self.proxies {
            proxy.both(Mode::Pass);
        }
        self.rabbit.heal();
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.u64(range))
    }
}
