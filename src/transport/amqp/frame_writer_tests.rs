//! Tests of the frame writer over real sockets.

use std::io::Read;
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use socket2::SockRef;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a writer, and returns the other end of its socket. The buffers between them are small.
pub(in crate::transport::amqp) fn connected() -> (RunningWriter, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener)
        .set_recv_buffer_size(8 << 10)
        .unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    SockRef::from(&socket)
        .set_send_buffer_size(8 << 10)
        .unwrap();
    socket.set_nonblocking(true).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    (FrameWriter::start(0, socket).unwrap(), peer)
}

fn send(writer: &FrameWriter, bytes: &[u8]) {
    let _ = writer.append(None, |out| out.extend_from_slice(bytes));
    writer.flush_frames();
}

/// Reads messages of a length (4 bytes), a thread's number and as many bytes of that number.
fn read_message(peer: &mut TcpStream) -> (u8, usize) {
    let mut start = [0; 5];
    peer.read_exact(&mut start).unwrap();
    let [a, b, c, d, number] = start;
    let mut body = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
    peer.read_exact(&mut body).unwrap();
    assert!(
        body.iter().all(|&byte| byte == number),
        "it is in one piece"
    );
    (number, body.len())
}

#[test]
fn messages_of_many_threads_stay_in_one_piece_and_in_order() {
    const THREADS: u8 = 8;
    const MESSAGES: usize = 300;
    let (running, mut peer) = connected();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let writer = running.writer();
            scope.spawn(move || {
                for size in 1..=MESSAGES {
                    writer.append(None, |out| {
                        out.extend_from_slice(&u32::try_from(size).unwrap().to_be_bytes());
                        out.push(number);
                        out.resize(out.len() + size, number);
                    });
                    writer.flush_frames();
                }
            });
        }
        let mut last = [0; THREADS as usize];
        for _ in 0..usize::from(THREADS) * MESSAGES {
            let (number, size) = read_message(&mut peer);
            let last = &mut last[usize::from(number)];
            assert_eq!(size, *last + 1);
            *last = size;
        }
    });
}

#[test]
fn a_full_socket_stops_messages_before_settlements_and_is_written_on_when_there_is_room() {
    let (running, mut peer) = connected();
    let writer = running.writer();
    assert!(writer.has_room_or_wakes());
    let append = |priority| {
        let appended = writer.append(Some(priority), |out| out.resize(out.len() + 10_000, 7));
        writer.flush_frames();
        appended
    };
    let messages = (0..).take_while(|_| append(Priority::Message)).count();
    assert!(!writer.has_room_or_wakes());
    let settlements = (0..).take_while(|_| append(Priority::Settlement)).count();
    assert!(messages * 10_000 >= MOST_FOR_MESSAGES);
    assert!(settlements * 10_000 >= MOST_FOR_SETTLEMENTS - MOST_FOR_MESSAGES - 20_000);
    let sent = (messages + settlements) * 10_000;
    assert!(writer.woken().is_empty());
    let mut read = vec![0; sent];
    peer.read_exact(&mut read).unwrap();
    assert!(read.iter().all(|&byte| byte == 7));
    assert!(writer.woken().recv_timeout(PATIENCE).is_ok());
    send(writer, &[8]);
    peer.read_exact(&mut read[..1]).unwrap();
    assert_eq!(read[0], 8);
}

#[test]
fn what_follows_a_lost_connection_is_dropped() {
    let (running, peer) = connected();
    let writer = running.writer();
    drop(peer);
    let end = Instant::now() + PATIENCE;
    while !writer.queue.lock().has_failed {
        assert!(Instant::now() < end);
        send(writer, &[1; 1_000]);
    }
    assert!(!writer.append(None, |_| panic!("it is not encoded")));
    assert!(writer.has_room(Priority::Message), "nothing is kept");
}

#[test]
fn a_part_of_a_message_is_taken_back() {
    let (running, mut peer) = connected();
    let writer = running.writer();
    let encode = |out: &mut Vec<u8>| {
        out.extend_from_slice(b"a part");
        panic!("an encoder should not");
    };
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.append(None, encode)));
    assert!(panicked.is_err());
    send(writer, b"whole");
    let mut read = [0; 5];
    peer.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"whole");
}

#[test]
fn a_writer_ends_while_the_socket_is_full() {
    let (running, mut peer) = connected();
    while running.writer().has_room(Priority::Message) {
        send(running.writer(), &[1; 10_000]);
    }
    drop(running);
    let mut rest = Vec::new();
    let _ = peer.read_to_end(&mut rest); // it ends, although this clone's writer had more
}
