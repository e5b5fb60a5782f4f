//! Tests of the schedule, against a model that looks at everything.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::lane::{Class, Limit, Place, Shareable};
use super::schedule::Schedule;

/// An item with a number of parts that runners can share.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) id: usize,
    parts: Rc<Cell<usize>>,
}

impl Item {
    pub(super) fn new(id: usize, parts: usize) -> Self {
        let parts = Rc::new(Cell::new(parts));
        Self { id, parts }
    }
}

impl Shareable for Item {
    fn share(&self) -> Option<Self> {
        (self.parts.get() > 0).then(|| self.clone())
    }
}

const LIMITS: [Limit; 4] = [
    Limit::None,
    Limit::HalfIfOthersWait,
    Limit::AtMost(2),
    Limit::AtMost(1),
];
const SHARED: usize = 1;
const RUNNERS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Push to a class, with a key if that is below 3.
    Push {
        class: usize,
        key: usize,
    },
    PushSingle {
        parts: usize,
    },
    PushAt {
        class: usize,
        delay: u64,
    },
    Take,
    Finish {
        at: usize,
    },
    PutBack {
        at: usize,
        delay: u64,
    },
    Enter {
        class: usize,
    },
    Leave {
        at: usize,
    },
    Advance {
        by: u64,
    },
    Clear {
        class: usize,
        running_too: bool,
    },
    /// Set the limit of a class; `None` for no limit.
    Limit {
        class: usize,
        limit: Option<usize>,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let class = prop::sample::select(vec![0_usize, 2, 3]);
    let op = prop_oneof![
        6 => (class.clone(), 0..6_usize).prop_map(|(class, key)| Op::Push { class, key }),
        2 => (0..5_usize).prop_map(|parts| Op::PushSingle { parts }),
        1 => (class.clone(), 0..9_u64).prop_map(|(class, delay)| Op::PushAt { class, delay }),
        8 => Just(Op::Take),
        5 => (0..8_usize).prop_map(|at| Op::Finish { at }),
        2 => (0..8_usize, 0..9_u64).prop_map(|(at, delay)| Op::PutBack { at, delay }),
        1 => (0..4_usize).prop_map(|class| Op::Enter { class }),
        1 => (0..4_usize).prop_map(|at| Op::Leave { at }),
        2 => (0..6_u64).prop_map(|by| Op::Advance { by }),
        1 => (0..4_usize, any::<bool>())
            .prop_map(|(class, running_too)| Op::Clear { class, running_too }),
        1 => (class, prop::option::of(0..3_usize))
            .prop_map(|(class, limit)| Op::Limit { class, limit }),
    ];
    prop::collection::vec(op, 1..120)
}

/// A lane of the model: its class, and its key or the id of its single item.
type LaneName = (usize, Option<usize>, Option<usize>);

#[derive(Default)]
struct ModelLane {
    items: VecDeque<usize>,
    running: usize,
    rests_until: Option<u64>,
}

struct Running {
    item: Item,
    place: Place,
    lane: LaneName,
    is_current: bool,
}

struct Model {
    limits: [Limit; 4],
    lanes: BTreeMap<LaneName, ModelLane>,
    parts: BTreeMap<usize, Rc<Cell<usize>>>,
    running: Vec<Running>,
    entered: Vec<usize>,
    /// The class and the id of each item that is put off, by its time and the number of the
    /// operation.
    put_off: BTreeMap<(u64, usize), (usize, usize)>,
    now: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            limits: LIMITS,
            lanes: BTreeMap::new(),
            parts: BTreeMap::new(),
            running: Vec::new(),
            entered: Vec::new(),
            put_off: BTreeMap::new(),
            now: 0,
        }
    }

    fn has_room(&self, class: usize) -> bool {
        match self.limits[class] {
            Limit::AtMost(limit) => self.running_of(class) < limit,
            Limit::None | Limit::HalfIfOthersWait => true,
        }
    }

    fn running_of(&self, class: usize) -> usize {
        let taken = self.running.iter().filter(|it| it.lane.0 == class).count();
        taken + self.entered.iter().filter(|it| **it == class).count()
    }

    /// Returns the lanes whose first items may run.
    fn eligible(&self) -> Vec<LaneName> {
        let may_run = |(name, lane): &(&LaneName, &ModelLane)| {
            let is_free = name.1.is_none() || lane.running == 0;
            let has_room = self.has_room(name.0);
            !lane.items.is_empty() && lane.rests_until.is_none() && is_free && has_room
        };
        let lanes = self.lanes.iter().filter(may_run);
        let all: Vec<LaneName> = lanes.map(|(name, _)| *name).collect();
        let over_half = self.running_of(SHARED) >= RUNNERS / 2;
        let others: Vec<_> = all.iter().copied().filter(|it| it.0 != SHARED).collect();
        if over_half && !others.is_empty() {
            others
        } else {
            all
        }
    }

    fn waiting(&self) -> usize {
        let queued: usize = self.lanes.values().map(|lane| lane.items.len()).sum();
        queued + self.put_off.len()
    }

    /// Moves what is due by the time that has come.
    fn release(&mut self) {
        let now = self.now;
        for lane in self.lanes.values_mut() {
            lane.rests_until = lane.rests_until.filter(|until| *until > now);
        }
        while let Some(first) = self.put_off.first_entry().filter(|it| it.key().0 <= now) {
            let (class, id) = first.remove();
            let lane = self.lanes.entry((class, None, None)).or_default();
            lane.items.push_back(id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens, an item is taken if and only if one may run, it is the first of its lane,
    /// and nothing is lost or taken twice.
    #[test]
    fn the_schedule_takes_what_the_model_allows(ops in ops()) {
        let begun = Instant::now();
        let at = |millis: u64| begun + Duration::from_millis(millis);
        let mut schedule = Schedule::new(RUNNERS);
        let classes: Vec<Class> = LIMITS.iter().map(|it| schedule.add_class(*it)).collect();
        let mut model = Model::new();
        for (number, op) in ops.into_iter().enumerate() {
            let id = number;
            match op {
                Op::Push { class, key } => {
                    let key = (key < 3).then_some(key);
                    match key {
                        Some(key) => {
                            schedule.push_keyed(classes[class], key.to_string(), Item::new(id, 0));
                        }
                        None => schedule.push(classes[class], Item::new(id, 0)),
                    }
                    let lane = model.lanes.entry((class, key, None)).or_default();
                    lane.items.push_back(id);
                }
                Op::PushSingle { parts } => {
                    let item = Item::new(id, parts);
                    model.parts.insert(id, Rc::clone(&item.parts));
                    schedule.push_single(classes[SHARED], item);
                    let lane = model.lanes.entry((SHARED, None, Some(id))).or_default();
                    lane.items.push_back(id);
                }
                Op::PushAt { class, delay } => {
                    let due = model.now + delay;
                    schedule.push_at(classes[class], Item::new(id, 0), at(due));
                    model.put_off.insert((due, number), (class, id));
                }
                Op::Take => {
                    let eligible = model.eligible();
                    prop_assert_eq!(schedule.has_next(), !eligible.is_empty());
                    let Some((item, place)) = schedule.take() else {
                        prop_assert!(eligible.is_empty());
                        continue;
                    };
                    let first = |it: &&LaneName| model.lanes[*it].items.front() == Some(&item.id);
                    let lane = *eligible.iter().find(first).expect("the first of an eligible lane");
                    let taken_from = model.lanes.get_mut(&lane).expect("it was found");
                    taken_from.running += 1;
                    // A runner of a shared item takes one of its parts.
                    match item.parts.get() {
                        0 => drop(taken_from.items.pop_front()),
                        parts => item.parts.set(parts - 1),
                    }
                    model.running.push(Running { item, place, lane, is_current: true });
                }
                Op::Finish { at: which } => {
                    if which < model.running.len() {
                        let ended = model.running.remove(which);
                        prop_assert_eq!(schedule.is_current(&ended.place), ended.is_current);
                        schedule.finish(ended.place);
                        model.lanes.get_mut(&ended.lane).expect("it ran").running -= 1;
                    }
                }
                Op::PutBack { at: which, delay } => {
                    let shared = |it: &Running| it.lane.0 == SHARED;
                    if which < model.running.len() && !shared(&model.running[which]) {
                        let Running { item, place, lane, is_current } = model.running.remove(which);
                        let due = model.now + delay;
                        let id = item.id;
                        let back = schedule.put_back(place, item, at(due));
                        prop_assert_eq!(back.is_ok(), is_current);
                        let state = model.lanes.get_mut(&lane).expect("it ran");
                        state.running -= 1;
                        match lane.1 {
                            _ if !is_current => {}
                            Some(_) => {
                                state.items.push_front(id);
                                state.rests_until = Some(due);
                            }
                            None => drop(model.put_off.insert((due, number), (lane.0, id))),
                        }
                    }
                }
                Op::Enter { class } => {
                    let has_room = model.has_room(class);
                    prop_assert_eq!(schedule.try_enter(classes[class]), has_room);
                    model.entered.extend(has_room.then_some(class));
                }
                Op::Leave { at: which } => {
                    if which < model.entered.len() {
                        schedule.leave(classes[model.entered.remove(which)]);
                    }
                }
                Op::Advance { by } => {
                    model.now += by;
                    schedule.release(at(model.now));
                    model.release();
                }
                Op::Limit { class, limit } => {
                    let limit = limit.map_or(Limit::None, Limit::AtMost);
                    schedule.set_limit(classes[class], limit);
                    model.limits[class] = limit;
                }
                Op::Clear { class, running_too } => {
                    let removed = match running_too {
                        true => schedule.clear(classes[class]),
                        false => schedule.take_waiting(classes[class]),
                    };
                    let mut removed: Vec<usize> = removed.iter().map(|it| it.id).collect();
                    let mut expected = Vec::new();
                    for (_, lane) in model.lanes.iter_mut().filter(|(name, _)| name.0 == class) {
                        expected.extend(lane.items.drain(..));
                        lane.rests_until = None;
                    }
                    let put_off = model.put_off.values().filter(|it| it.0 == class);
                    expected.extend(put_off.map(|it| it.1));
                    model.put_off.retain(|_, of| of.0 != class);
                    let running = model.running.iter_mut().filter(|it| it.lane.0 == class);
                    for running in running.filter(|_| running_too) {
                        running.is_current = false;
                    }
                    removed.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(removed, expected);
                }
            }
            prop_assert_eq!(schedule.waiting(), model.waiting());
            prop_assert_eq!(schedule.running(), model.running.len());
            let others = model.eligible().iter().any(|it| it.0 != SHARED);
            prop_assert_eq!(schedule.others_wait(), others);
        }
    }

    /// A class, and a key, waits for no more than one item of each other.
    #[test]
    fn classes_and_keys_take_turns(classes in 1..6_usize, keys in 1..6_usize) {
        let mut schedule = Schedule::new(1);
        let all: Vec<Class> = (0..classes).map(|_| schedule.add_class(Limit::None)).collect();
        for (at, class) in all.iter().enumerate() {
            for round in 0..3 {
                for key in 0..keys {
                    let id = at * 100 + key * 10 + round;
                    schedule.push_keyed(*class, key.to_string(), Item::new(id, 0));
                }
            }
        }
        for round in 0..3 {
            let mut seen: Vec<usize> = (0..classes * keys).map(|_| {
                let (item, place) = schedule.take().expect("items wait");
                schedule.finish(place);
                item.id
            }).collect();
            for turn in seen.chunks(classes) {
                let mut of: Vec<usize> = turn.iter().map(|id| id / 100).collect();
                of.sort_unstable();
                prop_assert_eq!(of, (0..classes).collect::<Vec<_>>());
            }
            seen.sort_unstable();
            let all: Vec<usize> = (0..classes)
                .flat_map(|at| (0..keys).map(move |key| at * 100 + key * 10 + round))
                .collect();
            prop_assert_eq!(seen, all);
        }
    }
}
