//! Runs a workload: starts the load threads, paces their connections, and gathers what they counted.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use tokio_uring::net::TcpStream;

use super::connection::Connection;
use super::session::{PATIENCE, Plan, Session, Task};
use super::tally::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::ring;

/// How often the load checks for such a silence, and reports its progress.
const TICK: Duration = Duration::from_millis(100);
/// The timers of the runtime are this coarse. For a request that is due sooner, the clock is polled.
const TIMER: Duration = Duration::from_millis(2);

/// The result of a workload.
pub struct Outcome {
    /// Everything that was counted.
    pub tally: Tally,
    /// Processor time that this process used, per second that passed.
    pub processors: f64,
    /// Why the workload ended early, if it did.
    pub failure: Option<Error>,
}

/// Carries out a workload. `progress` is told now and then how many answers have come.
///
/// # Errors
/// `Configuration` if the system refuses a ring, and `Io` if the server cannot be reached. Later failures are in the
/// outcome.
pub fn run(plan: &Plan, task: Task, progress: impl Fn(u64)) -> Result<Outcome> {
    let run = Arc::new(Session::new(plan, task));
    let all_connected = Barrier::new(plan.threads as usize + 1);
    let main = std::thread::current();
    let (tallies, begin, used) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|index| {
                let (run, all_connected, main) = (run.clone(), &all_connected, main.clone());
                scope.spawn(move || {
                    let tally = thread(run, index, all_connected);
                    main.unpark();
                    tally
                })
            })
            .collect();
        all_connected.wait();
        let (begin, used) = (run.start(), host::processor_time());
        while !threads.iter().all(|thread| thread.is_finished()) {
            std::thread::park_timeout(TICK);
            progress(run.answers());
        }
        let tallies: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        (tallies, begin, used)
    });
    let processors = (host::processor_time() - used).as_secs_f64() / begin.elapsed().as_secs_f64();
    let mut tally = Tally::new(begin + plan.warm_up);
    for part in tallies {
        tally.merge(part?);
    }
    let failure = run.take_failure();
    if run.deadline().is_some() && failure.is_none() {
        tally.last_until(run.end(Instant::now()));
    }
    Ok(Outcome { tally, processors, failure })
}

fn thread(run: Arc<Session>, index: u64, all_connected: &Barrier) -> Result<Tally> {
    // Built here, because a ring belongs to the thread that builds it.
    let runtime = ring::probe();
    let connected = match &runtime {
        Ok((_, runtime)) => runtime.block_on(connect(&run, index)),
        Err(error) => Err(error.clone()),
    };
    if connected.is_err() {
        run.give_up();
    }
    all_connected.wait();
    let ((_, runtime), streams) = (runtime?, connected?);
    Ok(runtime.block_on(drive(run, index, streams)))
}

/// Opens the connections of a thread: every `threads`-th, starting with `index`.
async fn connect(run: &Session, index: u64) -> Result<Vec<(u64, TcpStream)>> {
    let plan = &run.plan;
    let mut streams = Vec::new();
    for connection in (index..plan.connections).step_by(plan.threads as usize) {
        let stream = TcpStream::connect(plan.server).await;
        let stream = stream.map_err(|error| Error::io(format!("connect to {}", plan.server), error))?;
        stream.set_nodelay(true).map_err(|error| Error::io("set TCP_NODELAY", error))?;
        streams.push((connection, stream));
    }
    Ok(streams)
}

/// Drives the connections of a thread to their end. Nothing is in flight when it returns.
async fn drive(run: Arc<Session>, index: u64, streams: Vec<(u64, TcpStream)>) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::new(run.start() + run.plan.warm_up)));
    let connections: Rc<[Rc<Connection>]> = streams
        .into_iter()
        .map(|(number, stream)| Connection::new(stream, run.clone(), number, tally.clone()))
        .collect();
    let tasks: Vec<_> = connections
        .iter()
        .flat_map(|connection| {
            let (writer, reader) = (connection.clone(), connection.clone());
            [tokio_uring::spawn(writer.write()), tokio_uring::spawn(reader.read())]
        })
        .collect();
    let watch = tokio_uring::spawn(watch(run.clone(), connections.clone()));
    if run.pace().is_some() {
        pace(&run, index, &connections).await;
    }
    for task in tasks {
        let _ = task.await; // fails only after a panic, which ends the process
    }
    watch.abort(); // this task has no operation in the ring
    tally.replace(Tally::new(run.start()))
}

/// Ends all connections if one of them gets no answer for too long.
async fn watch(run: Arc<Session>, connections: Rc<[Rc<Connection>]>) {
    loop {
        tokio::time::sleep(TICK).await;
        let now = Instant::now();
        let silent = connections.iter().map(|connection| connection.silence(now)).max().unwrap_or_default();
        if PATIENCE < silent {
            let message = format!("the server has not answered for {} s", PATIENCE.as_secs());
            run.fail(Error::new(ErrorKind::Io, message));
            connections.iter().for_each(|connection| connection.end());
        } else if run.is_over(now) {
            // Wake the writers that still wait, so that they see the end of the run.
            connections.iter().for_each(|connection| connection.wake());
        }
    }
}

/// Wakes each connection when one of its requests is due, until the run is over.
async fn pace(run: &Session, index: u64, connections: &[Rc<Connection>]) {
    let (Some(pace), Some(_)) = (run.pace(), connections.first()) else { return };
    let mut round = 0;
    while !connections.iter().all(|connection| connection.has_written()) {
        for (place, connection) in connections.iter().enumerate() {
            if !connection.has_written() {
                wait_until(run, pace.time(index + place as u64 * run.plan.threads, round)).await;
                connection.wake();
            }
        }
        if run.is_over(Instant::now()) {
            return connections.iter().for_each(|connection| connection.wake());
        }
        round = pace.next_round(index, round, Instant::now());
        // Let the ring proceed, however late this round is.
        if tokio_uring::no_op().await.is_err() {
            return;
        }
    }
}

/// Waits until `due` has passed, or the run is over.
async fn wait_until(run: &Session, due: Instant) {
    loop {
        let now = Instant::now();
        match due.checked_duration_since(now) {
            _ if run.is_over(now) => return,
            None => return,
            Some(early) if TIMER < early => tokio::time::sleep((early - TIMER).min(TICK)).await,
            // The clock is polled, but the ring proceeds in between: every other operation is submitted with this one.
            Some(_) => {
                if tokio_uring::no_op().await.is_err() {
                    return;
                }
            }
        }
    }
}
