//! A latency-sensitive TCP server: each request costs some computing and some walking through memory.

use std::{
    hint::black_box,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{loss::lose_one_in, protocol::ECHO_BYTES};

/// What one request costs.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Cost {
    /// Random steps through memory per request.
    #[arg(long, default_value_t = 6_000)]
    pub steps: u32,
    /// Memory that the steps lead through, in MiB.
    #[arg(long, default_value_t = 8)]
    pub memory_mib: usize,
    /// Computing per request, in microseconds.
    #[arg(long, default_value_t = 0)]
    pub spin_us: u64,
}

/// How an answer is given.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Manner {
    /// Speak first on every connection, as mail and database servers do.
    #[arg(long)]
    pub greet: bool,
    /// Parts of an answer, each as long as a request.
    #[arg(long, default_value_t = 1)]
    pub parts: u32,
    /// Hang up when asked, without an answer.
    #[arg(long)]
    pub hang_up: bool,
    /// Lose one of so many packets that come in.
    #[arg(long)]
    pub lose_one_in: Option<u32>,
    /// Between parts, in microseconds.
    #[arg(long, default_value_t = 0)]
    pub pause_us: u64,
}

/// A closed walk through all of the memory in random order, which no prefetcher can guess.
#[derive(Debug)]
struct Walk(Vec<u32>);

/// Serves every connection on a thread of its own, until the process is killed. Prints the address once it listens.
///
/// # Errors
/// Where the address cannot be bound.
pub fn serve(listen: SocketAddr, cost: Cost, manner: Manner) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let walk = Arc::new(Walk::new(cost.memory_mib << 20));
    println!("{}", listener.local_addr()?);
    for (number, connection) in listener.incoming().enumerate() {
        let (connection, walk) = (connection?, Arc::clone(&walk));
        thread::spawn(move || {
            // A client that hangs up ends its thread, and that is all.
            answer(connection, cost, manner, &walk, number).ok();
        });
    }
    Ok(())
}

/// Sends every datagram back, until the process is killed. Prints the address first.
///
/// # Errors
/// Where the address cannot be bound.
pub fn serve_datagrams(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("cannot receive on {listen}"))?;
    println!("{}", socket.local_addr()?);
    let mut datagram = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..length], from)?;
    }
}

fn answer(
    mut connection: TcpStream,
    cost: Cost,
    manner: Manner,
    walk: &Walk,
    number: usize,
) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    if let Some(number) = manner.lose_one_in {
        lose_one_in(&connection, number)?;
    }
    let mut request = [0; ECHO_BYTES];
    if manner.greet {
        connection.write_all(&request)?;
    }
    let mut place = walk.start(number);
    loop {
        connection.read_exact(&mut request)?;
        if manner.hang_up {
            return Ok(());
        }
        place = walk.go(place, cost.steps);
        spin(Duration::from_micros(cost.spin_us));
        connection.write_all(&request)?;
        for _ in 1..manner.parts {
            thread::sleep(Duration::from_micros(manner.pause_us));
            connection.write_all(&request)?;
        }
    }
}

impl Walk {
    fn new(bytes: usize) -> Self {
        let length = (bytes / 4).max(2);
        let mut order: Vec<u32> = (0..u32::try_from(length).expect("below 16 GiB")).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut order);
        let mut next = vec![0; length];
        for pair in order.windows(2) {
            next[pair[0] as usize] = pair[1];
        }
        next[order[length - 1] as usize] = order[0];
        Self(next)
    }

    /// Where a connection starts, so that connections do not warm the cache for each other.
    fn start(&self, number: usize) -> u32 {
        u32::try_from(number.wrapping_mul(7_919) % self.0.len()).expect("below the length")
    }

    fn go(&self, mut place: u32, steps: u32) -> u32 {
        for _ in 0..steps {
            place = self.0[place as usize];
        }
        black_box(place)
    }
}

fn spin(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}
