//! Tests of things that a process has one of: its logger, its memory and its children. Each runs
//! in a process of its own.

use crate::support::process::Process;
use crate::support::server::Server;
use crate::support::unique;

/// All lines are logged at `trace`, those of amiquip too.
#[test]
fn no_line_of_any_level_holds_a_secret() {
    let rabbit = Server::rabbitmq();
    rabbit.ctl(&["add_user", "tester", "hunter2-secret"]);
    rabbit.ctl(&["set_permissions", "tester", ".*", ".*", ".*"]);
    let url = rabbit.url().replace("guest:guest", "tester:hunter2-secret");
    let process = Process::start(&["trace", &url, &unique("work")]);
    process.wait_for("no secret in");
}

/// A logger that calls coney for each line it gets.
#[test]
fn a_logger_may_publish() {
    for url in ["memory", &*crate::support::amqp_url()] {
        let process = Process::start(&["log", url, &unique("work")]);
        process.wait_for("logged");
    }
}

#[test]
fn a_logger_may_panic() {
    Process::start(&["panic", &unique("work")]).wait_for("outlived");
}

/// Parent and child have the connection's socket, and the parent alone has its threads.
#[test]
fn a_forked_child_leaves_its_parents_connection_alone() {
    for url in ["memory", &*crate::support::amqp_url()] {
        let process = Process::start(&["fork", url, &unique("work")]);
        process.wait_for("apart");
    }
}

/// A thousand callers with 200 KiB each while the connection is down.
#[test]
fn the_send_queue_is_bounded_in_bytes() {
    let proxy = crate::support::proxy::Proxy::start(&crate::support::amqp_url());
    let process = Process::start(&["flood", &proxy.url, &unique("work")]);
    proxy.both(crate::support::proxy::Mode::Swallow);
    proxy.cut();
    process.wait_for("bounded");
}
