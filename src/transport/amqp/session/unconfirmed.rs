//! The messages of a channel that the broker has not confirmed yet.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use amiquip::Confirm;

use crate::transport::{ConfirmOutcome, ConfirmSender, Publication, Returned};

/// The unconfirmed messages of a channel in confirm mode.
///
/// The broker numbers the messages of each channel from 1, and so does this table. It
/// confirms in any order, one by one or everything up to a number. An unroutable message
/// is returned first and then confirmed all the same, so the returns must be passed on
/// before [`confirmed`](Unconfirmed::confirmed) is called.
pub(super) struct Unconfirmed {
    /// The number of the next message.
    next: u64,
    /// The messages whose senders wait for a confirm, by number.
    waiting: BTreeMap<u64, UnconfirmedMessage>,
    /// The reasons for returning messages that are not confirmed yet.
    returned: HashMap<ReturnKey, VecDeque<String>>,
}

/// The key that identifies a returned message. Of several with the same key, the first counts
/// as returned: all have the same destination, which none of them could reach.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ReturnKey {
    exchange: Cow<'static, str>,
    routing_key: String,
    message_id: Option<String>,
}

struct UnconfirmedMessage {
    confirm: ConfirmSender,
    key: ReturnKey,
    /// The message itself, if it may be sent again after a loss.
    resend: Option<Publication>,
}

impl Unconfirmed {
    /// Creates the table of a channel that has published `before` messages in confirm mode.
    pub(super) fn after(before: u64) -> Self {
        Self {
            next: before + 1,
            waiting: BTreeMap::new(),
            returned: HashMap::new(),
        }
    }

    /// Returns the number of messages that the channel has published in confirm mode.
    pub(super) fn published(&self) -> u64 {
        self.next - 1
    }

    /// Records the message that is published next.
    pub(super) fn publishing(&mut self, publication: &Publication, confirm: Option<ConfirmSender>) {
        let number = self.next;
        self.next += 1;
        let Some(mut confirm) = confirm else { return };
        confirm.sent();
        let waiting = UnconfirmedMessage {
            confirm,
            key: ReturnKey {
                exchange: publication.exchange.clone(),
                routing_key: publication.routing_key.clone(),
                message_id: publication.properties.message_id.clone(),
            },
            resend: publication.idempotent.then(|| publication.clone()),
        };
        self.waiting.insert(number, waiting);
    }

    /// Records a returned message.
    pub(super) fn returned(&mut self, returned: Returned) {
        let key = ReturnKey {
            exchange: returned.exchange,
            routing_key: returned.routing_key,
            message_id: returned.message_id,
        };
        self.returned
            .entry(key)
            .or_default()
            .push_back(returned.reason);
    }

    /// Takes the reason for which a message was returned, if it was.
    fn take_returned(&mut self, key: &ReturnKey) -> Option<String> {
        if self.returned.is_empty() {
            return None;
        }
        let reasons = self.returned.get_mut(key)?;
        let reason = reasons.pop_front();
        if reasons.is_empty() {
            self.returned.remove(key);
        }
        reason
    }

    /// Settles the outcomes of the messages that the broker has confirmed or refused.
    pub(super) fn confirmed(&mut self, confirm: Confirm) {
        let (payload, taken) = match confirm {
            Confirm::Ack(payload) => (payload, true),
            Confirm::Nack(payload) => (payload, false),
        };
        let number = payload.delivery_tag;
        let confirmed = if payload.multiple {
            let later = self.waiting.split_off(&number.saturating_add(1));
            std::mem::replace(&mut self.waiting, later)
        } else {
            // None for a message of the link that had the channel before.
            let one = self.waiting.remove(&number);
            BTreeMap::from_iter(one.map(|waiting| (number, waiting)))
        };
        for waiting in confirmed.into_values() {
            let returned = self.take_returned(&waiting.key);
            waiting.confirm.settle(match returned {
                Some(reason) => ConfirmOutcome::Returned(reason),
                None if taken => ConfirmOutcome::Confirmed,
                None => ConfirmOutcome::Refused("a queue is full, or has failed".to_owned()),
            });
        }
    }

    /// Settles the outcomes after the broker has closed the channel because of one message: that
    /// one is refused, and the outcomes of the others are unknown. It is taken to be the oldest
    /// one for the exchange that the broker's reason names.
    pub(super) fn refused(&mut self, reason: &Arc<str>) {
        let names = |key: &ReturnKey| reason.contains(&format!("'{}'", key.exchange));
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        let mut before = Vec::new();
        let at_fault = waiting.find_map(|(_, waiting)| {
            if names(&waiting.key) {
                return Some(waiting);
            }
            before.push(waiting);
            None
        });
        if let Some(refused) = at_fault {
            refused
                .confirm
                .settle(ConfirmOutcome::Refused(reason.to_string()));
        }
        let others = before
            .into_iter()
            .chain(waiting.map(|(_, waiting)| waiting));
        for other in others {
            other
                .confirm
                .settle(ConfirmOutcome::Lost(Arc::clone(reason)));
        }
    }

    /// Takes the messages that are to be resent after a loss, with their confirm senders; the
    /// outcomes of the others are settled as lost.
    pub(super) fn lost(
        &mut self,
        cause: &Arc<str>,
        may_resend: bool,
    ) -> Vec<(Publication, ConfirmSender)> {
        let mut resend = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting).into_values() {
            match waiting.resend {
                Some(publication) if may_resend => {
                    waiting.confirm.unsent();
                    if let Some(send_state) = &publication.send_state {
                        send_state.queue_again();
                    }
                    resend.push((publication, waiting.confirm));
                }
                _ => waiting
                    .confirm
                    .settle(ConfirmOutcome::Lost(Arc::clone(cause))),
            }
        }
        resend
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::confirmation::{self, ConfirmReceiver, ConfirmWindow};
    use amiquip::ConfirmPayload;
    use std::time::Instant;

    fn publish(unconfirmed: &mut Unconfirmed, id: &str) -> ConfirmReceiver {
        let window = Arc::new(ConfirmWindow::new(1));
        let permit = window.enter(Instant::now()).unwrap();
        let (confirm, receiver) = confirmation::pair(permit);
        let mut publication = Publication::new("", "q", Vec::new());
        publication.properties.message_id = (!id.is_empty()).then(|| id.to_owned());
        publication.idempotent = id == "again";
        unconfirmed.publishing(&publication, Some(confirm));
        receiver
    }

    fn returned(id: Option<&str>) -> Returned {
        Returned {
            exchange: "".into(),
            routing_key: "q".to_owned(),
            message_id: id.map(str::to_owned),
            correlation_id: None,
            reason: "NO_ROUTE".to_owned(),
        }
    }

    fn payload(delivery_tag: u64, multiple: bool) -> ConfirmPayload {
        ConfirmPayload {
            delivery_tag,
            multiple,
        }
    }

    fn outcome(receiver: &ConfirmReceiver) -> Option<ConfirmOutcome> {
        receiver.wait(Instant::now())
    }

    #[test]
    fn confirms_come_in_any_order_single_or_multiple() {
        let mut unconfirmed = Unconfirmed::after(5);
        let all = ["a", "b", "c", "d"].map(|id| publish(&mut unconfirmed, id));
        assert_eq!(unconfirmed.published(), 9);
        unconfirmed.confirmed(Confirm::Ack(payload(2, true))); // of another link
        assert_eq!(outcome(&all[0]), None);
        unconfirmed.confirmed(Confirm::Nack(payload(8, false)));
        assert!(matches!(outcome(&all[2]), Some(ConfirmOutcome::Refused(_))));
        unconfirmed.confirmed(Confirm::Ack(payload(7, true)));
        assert_eq!(outcome(&all[0]), Some(ConfirmOutcome::Confirmed));
        assert_eq!(outcome(&all[1]), Some(ConfirmOutcome::Confirmed));
        assert_eq!(outcome(&all[3]), None);
        unconfirmed.confirmed(Confirm::Ack(payload(99, true))); // an unknown number
        assert_eq!(outcome(&all[3]), Some(ConfirmOutcome::Confirmed));
        let next = publish(&mut unconfirmed, "e");
        unconfirmed.confirmed(Confirm::Ack(payload(10, false)));
        assert_eq!(outcome(&next), Some(ConfirmOutcome::Confirmed));
    }

    #[test]
    fn one_message_is_refused_when_the_channel_is_closed() {
        let mut unconfirmed = Unconfirmed::after(0);
        let all = ["a", "b"].map(|id| publish(&mut unconfirmed, id));
        unconfirmed.refused(&"access to exchange '' refused".into());
        assert!(matches!(outcome(&all[0]), Some(ConfirmOutcome::Refused(_))));
        assert!(matches!(outcome(&all[1]), Some(ConfirmOutcome::Lost(_))));
        let all = ["a", "b"].map(|id| publish(&mut unconfirmed, id));
        unconfirmed.refused(&"access to exchange 'x' refused".into());
        assert!(matches!(outcome(&all[0]), Some(ConfirmOutcome::Lost(_))));
        assert!(matches!(outcome(&all[1]), Some(ConfirmOutcome::Lost(_))));
    }

    #[test]
    fn a_returned_message_is_not_confirmed() {
        let mut unconfirmed = Unconfirmed::after(0);
        let (a, b) = (
            publish(&mut unconfirmed, "a"),
            publish(&mut unconfirmed, "b"),
        );
        unconfirmed.returned(returned(Some("b")));
        unconfirmed.confirmed(Confirm::Ack(payload(2, true)));
        assert_eq!(outcome(&a), Some(ConfirmOutcome::Confirmed));
        assert_eq!(
            outcome(&b),
            Some(ConfirmOutcome::Returned("NO_ROUTE".to_owned()))
        );
    }

    #[test]
    fn one_return_counts_for_one_of_several_messages_with_the_same_key() {
        let mut unconfirmed = Unconfirmed::after(0);
        let all = ["", "", "a"].map(|id| publish(&mut unconfirmed, id));
        unconfirmed.returned(returned(None));
        unconfirmed.confirmed(Confirm::Ack(payload(3, true)));
        assert_eq!(
            outcome(&all[0]),
            Some(ConfirmOutcome::Returned("NO_ROUTE".to_owned()))
        );
        assert_eq!(outcome(&all[1]), Some(ConfirmOutcome::Confirmed));
        assert_eq!(outcome(&all[2]), Some(ConfirmOutcome::Confirmed));
    }

    #[test]
    fn a_loss_settles_all_but_the_messages_to_be_resent() {
        let mut unconfirmed = Unconfirmed::after(0);
        let (a, b) = (
            publish(&mut unconfirmed, "a"),
            publish(&mut unconfirmed, "again"),
        );
        let resend = unconfirmed.lost(&"gone".into(), true);
        assert_eq!(outcome(&a), Some(ConfirmOutcome::Lost("gone".into())));
        assert_eq!(outcome(&b), None);
        assert_eq!(resend.len(), 1);
        drop(resend);
        assert_eq!(outcome(&b), Some(ConfirmOutcome::Dropped));
    }
}
