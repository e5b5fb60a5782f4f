//! The order in which waiting items run. Has no lock, clock or thread.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use super::lane::{Class, ClassState, Lane, LaneKind, Limit, Place, PutOff, Shareable};

/// Items that wait for a runner, that run, or that are put off until a time.
///
/// Each item is in a lane, whose items run in order, and each lane in a class. Classes take turns,
/// and so do the lanes of a class. To push, take and end an item takes time that does not grow with
/// the numbers of classes, lanes and items, except for those that are put off: theirs grows with the
/// logarithm of their number. To remove the items of a class takes time in proportion to its lanes
/// and to all that is put off.
pub(crate) struct Schedule<T> {
    classes: Vec<ClassState>,
    lanes: Vec<Lane<T>>,
    /// The indices of lanes that are not in use.
    free: Vec<usize>,
    /// The classes that have an item to run, each once, in the order of their turns.
    turns: VecDeque<usize>,
    put_off: BTreeMap<(Instant, u64), PutOff<T>>,
    last_number: u64,
    waiting: usize,
    running: usize,
    /// The number of runners, of which batches get half.
    runners: usize,
}

impl<T: Shareable> Schedule<T> {
    pub(super) fn new(runners: usize) -> Self {
        Self {
            classes: Vec::new(),
            lanes: Vec::new(),
            free: Vec::new(),
            turns: VecDeque::new(),
            put_off: BTreeMap::new(),
            last_number: 0,
            waiting: 0,
            running: 0,
            runners,
        }
    }

    /// Adds a class.
    pub(super) fn add_class(&mut self, limit: Limit) -> Class {
        let class = self.classes.len();
        let unkeyed = self.add_lane(class, LaneKind::Unkeyed);
        self.classes.push(ClassState {
            limit,
            running: 0,
            waiting: 0,
            turns: VecDeque::new(),
            has_turn: false,
            unkeyed,
            by_key: HashMap::new(),
            epoch: 0,
        });
        Class(class)
    }

    /// Sets the limit of a class. Items over it that run go on.
    pub(super) fn set_limit(&mut self, class: Class, limit: Limit) {
        self.classes[class.0].limit = limit;
        if self.may_run(class.0) {
            self.give_class_turn(class.0);
        } else {
            self.end_class_turn(class.0);
        }
    }

    /// Sets the number of runners.
    pub(super) fn set_runners(&mut self, runners: usize) {
        self.runners = runners;
    }

    /// Appends an item to the lane without a key of a class.
    pub(super) fn push(&mut self, class: Class, item: T) {
        let lane = self.classes[class.0].unkeyed;
        self.append(lane, item);
    }

    /// Appends an item to the lane of a key: it runs after the items before it have ended.
    pub(super) fn push_keyed(&mut self, class: Class, key: String, item: T) {
        let lane = match self.classes[class.0].by_key.get(&key) {
            Some(&lane) => lane,
            None => {
                let lane = self.add_lane(class.0, LaneKind::Keyed(key.clone()));
                self.classes[class.0].by_key.insert(key, lane);
                lane
            }
        };
        self.append(lane, item);
    }

    /// Adds an item in a lane of its own; the turn of its class is the next one.
    pub(super) fn push_single(&mut self, class: Class, item: T) {
        let lane = self.add_lane(class.0, LaneKind::Single);
        if !self.classes[class.0].has_turn && self.may_run(class.0) {
            self.classes[class.0].has_turn = true;
            self.turns.push_front(class.0);
        }
        self.append(lane, item);
    }

    /// Adds an item that is to be appended to the lane without a key of its class at the time `due`.
    pub(super) fn push_at(&mut self, class: Class, item: T, due: Instant) {
        self.waiting += 1;
        self.classes[class.0].waiting += 1;
        self.put_off_until(due, PutOff::Item(class.0, item));
    }

    /// Returns the time at which the first of the items that are put off is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        Some(self.put_off.first_key_value()?.0.0)
    }

    /// Makes the items run that were put off until `now` or earlier.
    pub(super) fn release(&mut self, now: Instant) {
        while let Some(first) = self.put_off.first_entry()
            && first.key().0 <= now
        {
            match first.remove() {
                PutOff::Item(class, item) => {
                    self.waiting -= 1;
                    self.classes[class].waiting -= 1;
                    self.push(Class(class), item);
                }
                PutOff::Lane(lane) => {
                    self.lanes[lane].rests = false;
                    self.give_turn(lane);
                }
            }
        }
    }

    /// Takes the next item that may run.
    pub(super) fn take(&mut self) -> Option<(T, Place)> {
        let class = self.next_class()?;
        let state = &mut self.classes[class];
        // A class has its turn only if one of its lanes has.
        let lane = state.turns.pop_front()?;
        let items = &mut self.lanes[lane].items;
        let shared = items.front()?.share();
        let is_left = shared.is_some();
        let item = shared.or_else(|| items.pop_front())?;
        self.waiting -= usize::from(!is_left);
        state.waiting -= usize::from(!is_left);
        state.running += 1;
        state.has_turn = false;
        let epoch = state.epoch;
        self.running += 1;
        self.lanes[lane].running += 1;
        self.lanes[lane].has_turn = false;
        self.give_turn(lane);
        self.give_class_turn(class);
        let place = Place { class, lane, epoch };
        Some((item, place))
    }

    /// Gives the place of an item back that has ended.
    pub(super) fn finish(&mut self, place: Place) {
        let Place { class, lane, .. } = place;
        self.running -= 1;
        self.classes[class].running -= 1;
        self.lanes[lane].running -= 1;
        self.give_turn(lane);
        self.give_class_turn(class);
        self.remove_if_empty(lane);
    }

    /// Puts a running item off until `due`: back to the front of its lane, which rests, if that is
    /// the lane of a key; otherwise to the end of its class. Returns the item if its class was
    /// cleared while it ran.
    pub(super) fn put_back(&mut self, place: Place, item: T, due: Instant) -> Result<(), T> {
        let Place { class, lane, .. } = place;
        if !self.is_current(&place) {
            self.finish(place);
            return Err(item);
        }
        if let LaneKind::Keyed(_) = self.lanes[lane].kind {
            self.lanes[lane].items.push_front(item);
            self.lanes[lane].rests = true;
            self.waiting += 1;
            self.classes[class].waiting += 1;
            self.put_off_until(due, PutOff::Lane(lane));
        } else {
            self.push_at(Class(class), item, due);
        }
        self.finish(place);
        Ok(())
    }

    /// Returns true if the class of a running item was not cleared since it was taken.
    pub(super) fn is_current(&self, place: &Place) -> bool {
        self.classes[place.class].epoch == place.epoch
    }

    /// Counts one more running item of a class that is not in the schedule, unless its limit is
    /// reached.
    pub(super) fn try_enter(&mut self, class: Class) -> bool {
        let may_run = self.may_run(class.0);
        if may_run {
            self.classes[class.0].running += 1;
            if !self.may_run(class.0) {
                self.end_class_turn(class.0);
            }
        }
        may_run
    }

    /// Ends an item that [`try_enter`](Self::try_enter) has counted.
    pub(super) fn leave(&mut self, class: Class) {
        self.classes[class.0].running -= 1;
        self.give_class_turn(class.0);
    }

    /// Removes the items of a class that wait or are put off, those of each lane in order. Items
    /// that run cannot be put back any more.
    pub(super) fn clear(&mut self, class: Class) -> Vec<T> {
        self.classes[class.0].epoch += 1;
        self.take_waiting(class)
    }

    /// Removes the items of a class that wait or are put off, those of each lane in order. Items
    /// that run can be put back.
    pub(super) fn take_waiting(&mut self, class: Class) -> Vec<T> {
        let Class(class) = class;
        let mut removed = Vec::new();
        self.classes[class].turns.clear();
        self.end_class_turn(class);
        let lanes: Vec<usize> = match self.classes[class].limit {
            // Each of its items has a lane without a name.
            Limit::HalfIfOthersWait => (0..self.lanes.len()).collect(),
            Limit::None | Limit::AtMost(_) => {
                let state = &self.classes[class];
                state
                    .by_key
                    .values()
                    .copied()
                    .chain([state.unkeyed])
                    .collect()
            }
        };
        for lane in lanes {
            let state = &mut self.lanes[lane];
            if state.class == class && state.kind != LaneKind::Unused {
                removed.extend(state.items.drain(..));
                state.has_turn = false;
                state.rests = false;
                self.remove_if_empty(lane);
            }
        }
        let put_off = std::mem::take(&mut self.put_off);
        for (at, entry) in put_off {
            match entry {
                PutOff::Item(of, item) if of == class => removed.push(item),
                PutOff::Lane(lane) if self.lanes[lane].class == class => {}
                entry => drop(self.put_off.insert(at, entry)),
            }
        }
        self.waiting -= removed.len();
        self.classes[class].waiting = 0;
        removed
    }

    /// Returns the classes.
    pub(super) fn classes(&self) -> impl Iterator<Item = Class> + use<T> {
        (0..self.classes.len()).map(Class)
    }

    /// Returns true if an item could run now.
    pub(super) fn has_next(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Returns true if an item of a class without the limit [`Limit::HalfIfOthersWait`] could run
    /// now.
    pub(super) fn others_wait(&self) -> bool {
        // There is one such class at most, so one of the first two is another.
        let mut first = self.turns.iter().take(2);
        first.any(|class| self.classes[*class].limit != Limit::HalfIfOthersWait)
    }

    /// Returns the number of items that wait or are put off.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the number of items that wait for a runner: not those that are put off, nor those of
    /// a class that has reached its limit. Takes time in proportion to the number of classes.
    pub(super) fn waiting_for_runners(&self) -> usize {
        let full = (0..self.classes.len()).filter(|class| !self.may_run(*class));
        let held: usize = full.map(|class| self.classes[class].waiting).sum();
        self.waiting
            .saturating_sub(held)
            .saturating_sub(self.put_off.len())
    }

    /// Returns the number of items of a class that wait or are put off.
    pub(super) fn waiting_of(&self, class: Class) -> usize {
        self.classes[class.0].waiting
    }

    /// Returns the number of items that run.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    fn append(&mut self, lane: usize, item: T) {
        self.waiting += 1;
        self.classes[self.lanes[lane].class].waiting += 1;
        self.lanes[lane].items.push_back(item);
        self.give_turn(lane);
    }

    fn put_off_until(&mut self, due: Instant, entry: PutOff<T>) {
        self.last_number += 1;
        self.put_off.insert((due, self.last_number), entry);
    }

    fn add_lane(&mut self, class: usize, kind: LaneKind) -> usize {
        let lane = Lane {
            class,
            kind,
            items: VecDeque::new(),
            running: 0,
            has_turn: false,
            rests: false,
        };
        match self.free.pop() {
            Some(at) => {
                self.lanes[at] = lane;
                at
            }
            None => {
                self.lanes.push(lane);
                self.lanes.len() - 1
            }
        }
    }

    /// Gives a lane its turn in its class, if it has an item that may run.
    fn give_turn(&mut self, lane: usize) {
        let state = &mut self.lanes[lane];
        let is_free = !matches!(state.kind, LaneKind::Keyed(_)) || state.running == 0;
        if is_free && !state.items.is_empty() && !state.rests && !state.has_turn {
            state.has_turn = true;
            let class = state.class;
            self.classes[class].turns.push_back(lane);
            self.give_class_turn(class);
        }
    }

    fn may_run(&self, class: usize) -> bool {
        match self.classes[class].limit {
            Limit::AtMost(limit) => self.classes[class].running < limit,
            Limit::None | Limit::HalfIfOthersWait => true,
        }
    }

    fn give_class_turn(&mut self, class: usize) {
        let state = &self.classes[class];
        if !state.has_turn && !state.turns.is_empty() && self.may_run(class) {
            self.classes[class].has_turn = true;
            self.turns.push_back(class);
        }
    }

    fn end_class_turn(&mut self, class: usize) {
        if std::mem::take(&mut self.classes[class].has_turn) {
            self.turns.retain(|it| *it != class);
        }
    }

    /// Removes the class from the turns that is to run next.
    fn next_class(&mut self) -> Option<usize> {
        let first = *self.turns.front()?;
        let state = &self.classes[first];
        let half = (self.runners / 2).max(1);
        if state.limit == Limit::HalfIfOthersWait && state.running >= half && self.turns.len() > 1 {
            self.turns.rotate_left(1);
        }
        self.turns.pop_front()
    }

    fn remove_if_empty(&mut self, lane: usize) {
        let state = &mut self.lanes[lane];
        if state.running > 0 || !state.items.is_empty() || state.kind == LaneKind::Unkeyed {
            return;
        }
        if let LaneKind::Keyed(key) = std::mem::replace(&mut state.kind, LaneKind::Unused) {
            self.classes[state.class].by_key.remove(&key);
        }
        self.free.push(lane);
    }
}
