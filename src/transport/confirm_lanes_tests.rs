//! The lanes on a model of a broker that stops a channel at a message for a dead destination.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::confirm_tally::Answer;
use super::*;

const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn to(key: usize) -> Destination<'static> {
    Destination {
        exchange: "",
        routing_key: KEYS[key],
    }
}

/// A broker with a channel for each lane. It answers the messages of a channel in their order, and
/// none behind a message for a dead destination.
struct Model {
    lanes: ConfirmLanes<u32>,
    opened: u32,
    closed: HashSet<u32>,
    channels: HashMap<u32, VecDeque<(usize, TallyPlace)>>,
    dead: HashSet<usize>,
    may_open: bool,
    now: Instant,
}

impl Model {
    fn new() -> Self {
        Self {
            lanes: ConfirmLanes::default(),
            opened: 0,
            closed: HashSet::new(),
            channels: HashMap::new(),
            dead: HashSet::new(),
            may_open: true,
            now: Instant::now(),
        }
    }

    fn open(&mut self) -> u32 {
        self.opened += 1;
        self.opened
    }

    /// Publishes a message; returns its channel, or `None` if no lane takes it.
    fn publish(&mut self, key: usize) -> Option<u32> {
        for unneeded in self.lanes.take_unneeded() {
            let channel = self.channels.remove(&unneeded).unwrap_or_default();
            assert!(channel.is_empty(), "a closed lane has no messages");
            assert!(self.closed.insert(unneeded), "a lane is closed once");
        }
        for _ in 0..4 {
            match self.lanes.way(to(key), self.now, || self.may_open) {
                Way::Link(channel, mut place) => {
                    assert!(!self.closed.contains(&channel), "the lane is open");
                    place.sent(self.now);
                    let queue = self.channels.entry(channel).or_default();
                    queue.push_back((key, place));
                    self.answer();
                    return Some(channel);
                }
                Way::OpenMain | Way::ReplaceMain(_) => {
                    let handle = self.open();
                    self.lanes.opened_main(handle);
                }
                Way::OpenOwn => {
                    let handle = self.open();
                    self.lanes.opened_own(to(key), handle);
                }
                Way::Wait(_) | Way::Quiet(_) => return None,
            }
        }
        panic!("a way is found in three steps");
    }

    fn answer(&mut self) {
        for channel in self.channels.values_mut() {
            while let Some((key, place)) = channel.pop_front() {
                if self.dead.contains(&key) {
                    channel.push_front((key, place));
                    break;
                }
                place.answered(Answer::Confirmed);
            }
        }
    }

    fn unanswered(&self, key: usize) -> usize {
        let messages = self.channels.values().flatten();
        messages.filter(|(other, _)| *other == key).count()
    }

    fn wait(&mut self) {
        self.now += QUIET_LIMIT;
    }

    /// Returns the number of open lanes.
    fn open_lanes(&self) -> usize {
        self.opened as usize - self.closed.len()
    }
}

#[test]
fn messages_share_a_lane_as_long_as_the_broker_answers() {
    let mut model = Model::new();
    for step in 0..100 {
        assert_eq!(model.publish(step % KEYS.len()), Some(1));
        model.wait();
    }
}

#[test]
fn a_dead_destination_holds_up_the_others_once() {
    let mut model = Model::new();
    model.dead.insert(0);
    let main = model.publish(0);
    assert_eq!(model.publish(1), main, "nothing is known yet");
    model.wait();
    // Behind the dead one on the first lane, and so a suspect.
    assert_eq!(model.unanswered(1), 1);
    assert_ne!(model.publish(1), main);
    assert_ne!(model.publish(2), main);
    assert_ne!(model.publish(0), main);
    for _ in 0..10 {
        model.wait();
        assert_eq!(model.publish(0), None, "it is refused at once");
        for key in 1..KEYS.len() {
            assert!(model.publish(key).is_some());
            assert_eq!(model.unanswered(key), usize::from(key == 1));
        }
    }
    // The dead one has a lane of its own, beside the first and the second main lane.
    assert_eq!(model.open_lanes(), 3);
    model.dead.clear();
    model.answer();
    let second = model.publish(1);
    assert_eq!(model.publish(0), second, "it is back on the main lane");
    assert_eq!(model.open_lanes(), 1);
}

#[test]
fn a_refused_message_does_not_prove_that_its_destination_is_well() {
    let mut model = Model::new();
    model.dead.insert(0);
    model.publish(0);
    model.wait();
    let main = model.publish(1);
    let own = model.publish(0);
    assert_ne!(main, own);
    for channel in model.channels.values_mut() {
        for (_, place) in channel.drain(..) {
            place.answered(Answer::Refused);
        }
    }
    assert_eq!(model.publish(0), own);
    assert_eq!(model.publish(1), main);
}

#[test]
fn a_dead_destination_does_not_fill_its_channel() {
    let mut model = Model::new();
    model.dead.insert(0);
    model.publish(0);
    model.wait();
    model.publish(1);
    let taken = (0..100).filter(|_| model.publish(0).is_some()).count();
    assert_eq!(taken, OWN_WINDOW);
}

#[test]
fn lanes_stay_if_none_can_be_opened() {
    let mut model = Model::new();
    model.dead.insert(0);
    let main = model.publish(0);
    model.wait();
    model.may_open = false;
    assert_eq!(model.publish(1), main);
    model.may_open = true;
    model.lanes.not_opened(to(1), model.now);
    assert_eq!(model.publish(1), main);
    model.wait();
    assert_ne!(model.publish(1), main);
}

#[test]
fn lost_and_unsent_messages_are_not_waited_for() {
    let mut lanes = ConfirmLanes::default();
    lanes.opened_main(1);
    let now = Instant::now();
    let later = now + 2 * QUIET_LIMIT;
    let place = |lanes: &ConfirmLanes<u32>| match lanes.way(to(0), now, || true) {
        Way::Link(1, place) => place,
        other => panic!("{other:?}"),
    };
    let _queued = place(&lanes);
    let mut lost = place(&lanes);
    let mut resent = place(&lanes);
    lost.sent(now);
    resent.sent(now);
    assert!(matches!(
        lanes.way(to(1), later, || true),
        Way::ReplaceMain(quiet) if quiet == 2 * QUIET_LIMIT
    ));
    drop(lost);
    resent.unsent();
    assert!(matches!(lanes.way(to(1), later, || true), Way::Link(1, _)));
    resent.sent(later);
    let soon = later + Duration::from_millis(1);
    assert!(matches!(lanes.way(to(1), soon, || true), Way::Link(1, _)));
}

#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    Wait,
    Die(usize),
    Recover,
    Connected(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..KEYS.len()).prop_map(Step::Publish),
        2 => Just(Step::Wait),
        1 => (0..2_usize).prop_map(Step::Die),
        1 => Just(Step::Recover),
        1 => any::<bool>().prop_map(Step::Connected),
    ]
}

proptest! {
    /// Whatever happens, a destination that answers is published to, lanes are closed once and
    /// empty, their number is bounded, and in the end one is left.
    #[test]
    fn destinations_that_answer_are_published_to(steps in vec(step(), 0..200)) {
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Publish(key) => {
                    let is_published = model.publish(key).is_some();
                    prop_assert!(is_published || model.dead.contains(&key));
                }
                Step::Wait => model.wait(),
                Step::Die(key) => drop(model.dead.insert(key)),
                Step::Recover => {
                    model.dead.clear();
                    model.answer();
                }
                Step::Connected(is_connected) => model.may_open = is_connected,
            }
            prop_assert!(model.open_lanes() <= 1 + MOST_REPLACED + KEYS.len());
        }
        model.dead.clear();
        model.answer();
        model.may_open = true;
        for key in 0..KEYS.len() {
            model.publish(key);
        }
        model.publish(0);
        prop_assert_eq!(model.open_lanes(), 1);
    }

    /// With lanes that can be opened, each death holds up the others once.
    #[test]
    fn each_death_holds_up_the_others_once(dead in 1..KEYS.len(), order in vec(0..KEYS.len(), 1..200)) {
        let mut model = Model::new();
        model.dead.extend(0..dead);
        let mut held_up = 0;
        for key in order {
            model.publish(key);
            let before = (dead..KEYS.len()).map(|key| model.unanswered(key)).sum::<usize>();
            // All that a main lane holds up by now is replaced with it.
            if before > held_up {
                model.wait();
                held_up = before;
            }
        }
        prop_assert!(held_up <= dead, "{held_up}");
    }
}
