//! The end of a run: the statistics of all services, and the audit of the books.

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::{Duration, Instant};

use coney::dead_letters::DeadLetter;
use coney::{DeadLetters, ServiceClient};

use crate::contract::{Books, INVENTORY, LOGISTICS, ORDER, Order, PAYMENT, Reservation, Run};
use crate::platform::Platform;
use crate::services;
use crate::stats::Report;

/// The longest time for which the audit waits for the last events. A RabbitMQ that is killed may
/// find that the queue of a delay is ready before the exchange for its messages, and tries again after
/// 180 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(240);

/// The state of a run, as its services report it.
struct Account {
    books: Books,
    reserved: Vec<Reservation>,
    charged: u64,
    planned: usize,
    letters: Vec<DeadLetter>,
    /// The orders among the letters.
    dead: HashSet<String>,
}

impl Account {
    fn take(platform: &Platform, client: &ServiceClient, run: &str) -> coney::Result<Self> {
        let name = Run {
            run: run.to_owned(),
        };
        let mut letters = DeadLetters::open(&platform.broker)?.list(usize::MAX)?;
        letters.retain(|letter| is_of(letter, run));
        let orders = letters
            .iter()
            .filter_map(|letter| letter.payload::<Order>().ok());
        Ok(Self {
            books: client.call(ORDER, "books", &name)?,
            reserved: client.call(INVENTORY, "reservations", run)?,
            charged: client.call(PAYMENT, "charged", run)?,
            planned: client.call(LOGISTICS, "planned", run)?,
            dead: orders.map(|order| order.order_id).collect(),
            letters,
        })
    }

    /// Returns a text for each sum that does not balance.
    fn faults(&self, placed: u64) -> Vec<String> {
        let Books {
            paid,
            cancelled,
            open,
        } = &self.books;
        let is_dead = |order: &&Order| self.dead.contains(&order.order_id);
        let known = (paid.len() + cancelled.len() + open.len()) as u64;
        let unsettled = open.iter().filter(|order| !is_dead(order)).count();
        let sold = paid.iter().filter(|order| !is_dead(order));
        let sold: u64 = sold.map(|order| order.quantity).sum();
        let reserved: u64 = self.reserved.iter().map(|one| one.quantity).sum();
        let owed: u64 = paid.iter().map(|order| order.cents).sum();
        let mut faults = Vec::new();
        let mut check = |what: &str, is: u64, should: u64| {
            if is != should {
                faults.push(format!("{what}: {is}, and should be {should}"));
            }
        };
        check("orders known", known, placed);
        check(
            "orders neither paid nor cancelled nor dead",
            unsettled as u64,
            0,
        );
        check("pieces taken from the stock", reserved, sold);
        check("cents charged", self.charged, owed);
        check("shipments planned", self.planned as u64, paid.len() as u64);
        // At least once: a command that is sent again after a fault may be dead-lettered twice.
        check("kinds of what nobody does", self.odd().min(1) as u64, 1);
        faults
    }

    /// Counts the dead letters that are not about an order.
    fn odd(&self) -> usize {
        let is_order = |letter: &&DeadLetter| letter.payload::<Order>().is_ok();
        self.letters
            .iter()
            .filter(|letter| !is_order(letter))
            .count()
    }
}

/// Waits until every order is settled, prints the statistics, and returns true if the books
/// balance.
pub fn run(
    platform: &Platform,
    client: &ServiceClient,
    run: &str,
    placed: u64,
) -> coney::Result<bool> {
    let end = Instant::now() + SETTLE_TIMEOUT;
    let (account, faults) = loop {
        let taken = Account::take(platform, client, run);
        match taken {
            Ok(account) => {
                let faults = account.faults(placed);
                if faults.is_empty() || Instant::now() >= end {
                    break (account, faults);
                }
            }
            Err(error) if Instant::now() >= end => return Err(error),
            Err(error) => log::info!("the audit is repeated after an error: {error}"),
        }
        thread::sleep(Duration::from_millis(300));
    };
    print_services(client, &account)?;
    print_letters(&account);
    let Books {
        paid, cancelled, ..
    } = &account.books;
    let alive = |orders: &[Order]| {
        let alive = orders
            .iter()
            .filter(|order| !account.dead.contains(&order.order_id));
        alive.count()
    };
    println!(
        "\n{placed} orders: {} paid, {} cancelled, {} dead letters",
        alive(paid),
        alive(cancelled),
        account.dead.len()
    );
    let refunds = paid.len() - alive(paid);
    println!("{refunds} of the dead letters are paid for: somebody has to give the money back");
    for fault in &faults {
        println!("NOT BALANCED  {fault}");
    }
    if faults.is_empty() {
        println!("the books balance: stock, money and shipments add up");
    }
    Ok(faults.is_empty())
}

fn print_services(client: &ServiceClient, account: &Account) -> coney::Result<()> {
    let mut dead: HashMap<&str, usize> = HashMap::new();
    for letter in &account.letters {
        // `event.SERVICE.…` or `service.SERVICE.request`
        let service = letter.queue().split('.').nth(1).unwrap_or_default();
        *dead.entry(service).or_default() += 1;
    }
    println!(
        "{:22} {:>8} {:>7} {:>8} {:>6} {:>9} {:>9}",
        "service", "handled", "failed", "retried", "dead", "p50", "p99"
    );
    for (name, _) in services::ALL {
        let report: Report = client.call(name, "report", &())?;
        println!(
            "{name:22} {:>8} {:>7} {:>8} {:>6} {:>6.1} ms {:>6.1} ms",
            report.handled,
            report.failed,
            report.retried,
            dead.get(name).unwrap_or(&0),
            report.p50_ms,
            report.p99_ms
        );
    }
    Ok(())
}

fn print_letters(account: &Account) {
    const SHOWN: usize = 3;
    println!("\ndead letters (the example `dead_letters` lists, replays and purges them):");
    let odd = account
        .letters
        .iter()
        .filter(|one| one.payload::<Order>().is_err());
    let orders = account
        .letters
        .iter()
        .filter(|one| one.payload::<Order>().is_ok());
    for letter in odd.chain(orders).take(SHOWN) {
        println!(
            "  {} {}: {}",
            letter.queue(),
            letter.reason(),
            letter.last_error().unwrap_or("no reason given")
        );
    }
    if account.letters.len() > SHOWN {
        println!("  and {} more", account.letters.len() - SHOWN);
    }
}

/// Returns true if a dead letter belongs to this run.
fn is_of(letter: &DeadLetter, run: &str) -> bool {
    let of_order = letter
        .payload::<Order>()
        .map(|order| order.order_id.starts_with(run));
    let of_run = || letter.payload::<String>().is_ok_and(|text| text == run);
    of_order.unwrap_or_else(|_| of_run())
}
