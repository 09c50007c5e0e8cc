//! How long does an LS group take to answer, how many requests does it answer, and which wait for an answer?
//!
//! A request begins with the first new payload byte that comes in on a served TCP connection and ends with the first
//! payload byte that goes out after it. Served means: somebody listens on the connection's local address and port, so
//! calls that the group makes itself do not count. Repeated segments are recognised by their sequence numbers. A request
//! ends unanswered when the server says that it has no more to say (FIN) or either side breaks off (RST); a client that
//! has no more to say may still be answered.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_spin_lock},
    helpers::{
        bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get, bpf_skb_cgroup_id,
        generated::{bpf_spin_lock as lock, bpf_spin_unlock as unlock},
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use enforcer_ebpf::{
    layout::{Drop, NO_VICTIM, Place, in_flight_bucket},
    table::Key,
};

use crate::{
    maps::{CONNECTIONS, Counter as _, EARLY, OBJECTIVES, ThisCpu, count_atomically},
    probes::onset::slow_request,
    task::{find_place, ktime_ns},
};

const PASS: i32 = 1;
const IPPROTO_TCP: u8 = 6;
/// Extension headers that may stand between IPv6 and TCP here: hop-by-hop, routing, destination options.
const IPV6_EXTENSIONS: [u8; 3] = [0, 43, 60];
const FIN: u8 = 1;
const RST: u8 = 4;
/// States of a socket: in the first three the server may speak, in the last there is no connection yet.
const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_RECV: u32 = 3;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LISTEN: u32 = 10;

/// What is known of one connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    /// Held by whoever changes `since_ns` or `is_over`: packets may come in and go out on several CPUs at once, and what
    /// is counted as begun must be counted as ended exactly once.
    lock: bpf_spin_lock,
    /// The sequence number after the last byte seen coming in.
    next_in: u32,
    /// When the request being served began, in ktime; 0: none is.
    since_ns: u64,
    /// The victim row of the group that serves it; [`NO_VICTIM`]: not a served connection.
    victim: u32,
    /// Not 0: the server cannot answer any more, so nothing begins here.
    is_over: u32,
}

impl Connection {
    /// Begins a request, unless one is being served or the connection is over. Tells whether it did.
    #[inline(always)]
    fn begin(&mut self, since_ns: u64) -> bool {
        // SAFETY: a lock in a map's value, released on the only way out; nothing is called meanwhile.
        unsafe { lock(&raw mut self.lock) };
        let begins = self.since_ns == 0 && self.is_over == 0;
        if begins {
            self.since_ns = since_ns;
        }
        // SAFETY: locked above.
        unsafe { unlock(&raw mut self.lock) };
        begins
    }

    /// Ends the request being served and returns since when it was; 0: none was.
    #[inline(always)]
    fn end(&mut self, is_over: bool) -> u64 {
        // SAFETY: as in `begin`.
        unsafe { lock(&raw mut self.lock) };
        let since_ns = self.since_ns;
        self.since_ns = 0;
        if is_over {
            self.is_over = 1;
        }
        // SAFETY: locked above.
        unsafe { unlock(&raw mut self.lock) };
        since_ns
    }
}

/// First bytes of a request come in.
#[cgroup_skb]
pub fn request_in(ctx: SkBuffContext) -> i32 {
    if let Some(segment) = segment_of(&ctx, RST)
        && let Some(connection) = connection(&ctx, &segment, Direction::In)
        && connection.victim != NO_VICTIM
    {
        if segment.payload > 0 {
            let end = segment.sequence.wrapping_add(segment.payload);
            let is_new = end.wrapping_sub(connection.next_in).cast_signed() > 0;
            if is_new {
                connection.next_in = end;
                // Looked at without the lock first: most segments belong to a request that has begun.
                if connection.since_ns == 0 {
                    begin(connection, ktime_ns());
                }
            }
        }
        if segment.ends {
            give_up(&ctx, connection);
        }
    }
    PASS
}

/// First bytes of a response go out.
#[cgroup_skb]
pub fn response_out(ctx: SkBuffContext) -> i32 {
    if let Some(segment) = segment_of(&ctx, FIN | RST)
        && let Some(connection) = connection(&ctx, &segment, Direction::Out)
        && connection.victim != NO_VICTIM
    {
        if segment.payload > 0 && connection.since_ns != 0 {
            answer(&ctx, connection);
        }
        if segment.ends {
            give_up(&ctx, connection);
        }
    }
    PASS
}

#[inline(always)]
fn begin(connection: &mut Connection, since_ns: u64) {
    if !connection.begin(since_ns) {
        return;
    }
    let (cpu, victim) = (ThisCpu::get(), connection.victim);
    in_flight(cpu, victim, since_ns, 1);
    if let Some(counts) = cpu.requests(victim) {
        counts.begun.add(1);
    }
}

/// A request is answered: latency counts.
#[inline(always)]
fn answer(ctx: &SkBuffContext, connection: &mut Connection) {
    let since_ns = connection.end(false);
    if since_ns == 0 {
        return;
    }
    let (cpu, victim) = (ThisCpu::get(), connection.victim);
    let latency_ns = ktime_ns().saturating_sub(since_ns);
    in_flight(cpu, victim, since_ns, u32::MAX);
    let Some(counts) = cpu.requests(victim) else { return };
    counts.served.add(1);
    counts.latency_ns.add(latency_ns);
    count_atomically(&mut counts.histogram, latency_ns);
    if is_slow(victim, latency_ns) {
        counts.slow.add(1);
        slow_request(ctx, cpu, victim);
    }
}

/// The connection is over: a request being served will not be answered.
#[inline(always)]
fn give_up(ctx: &SkBuffContext, connection: &mut Connection) {
    let since_ns = connection.end(true);
    if since_ns == 0 {
        return;
    }
    let (cpu, victim) = (ThisCpu::get(), connection.victim);
    let age_ns = ktime_ns().saturating_sub(since_ns);
    in_flight(cpu, victim, since_ns, u32::MAX);
    let Some(counts) = cpu.requests(victim) else { return };
    counts.unanswered.add(1);
    if is_slow(victim, age_ns) {
        counts.unanswered_slow.add(1);
        slow_request(ctx, cpu, victim);
    }
}

/// Adds to the requests in flight that began at `since_ns`; counts wrap, so `u32::MAX` takes one away.
#[inline(always)]
fn in_flight(cpu: ThisCpu, victim: u32, since_ns: u64, number: u32) {
    if let Some(buckets) = cpu.in_flight(victim)
        // The compiler knows that the bucket is in range, the verifier does not: the check must stay.
        && let Some(bucket) = buckets.get_mut(core::hint::black_box(in_flight_bucket(since_ns)))
    {
        bucket.add(number);
    }
}

#[inline(always)]
fn is_slow(victim: u32, latency_ns: u64) -> bool {
    OBJECTIVES.get(victim).is_some_and(|objective| objective.latency_ns < latency_ns)
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// A TCP segment that says something.
struct Segment {
    ipv6: bool,
    tcp_offset: usize,
    sequence: u32,
    acknowledged: u32,
    payload: u32,
    /// It has one of the flags that were asked for.
    ends: bool,
}

/// The packet's TCP segment; `None` for other protocols, and for segments with neither payload nor one of `flags`.
#[inline(always)]
fn segment_of(ctx: &SkBuffContext, flags: u8) -> Option<Segment> {
    // Each load is a call: as few as possible for a packet that says nothing.
    let [first, second, third] = ctx.load::<[u32; 3]>(0).ok()?;
    let [version_and_length, ..] = first.to_ne_bytes();
    let version = version_and_length >> 4;
    let [_, v4_protocol, ..] = third.to_ne_bytes();
    let [_, _, v6_next, _] = second.to_ne_bytes();
    let tcp_offset = match version {
        4 if v4_protocol == IPPROTO_TCP => (version_and_length & 15) as usize * 4,
        6 => tcp_offset_v6(ctx, v6_next)?,
        _ => return None,
    };
    let [sequence, acknowledged, flags_and_length] = ctx.load::<[u32; 3]>(tcp_offset + 4).ok()?;
    let [length, found, ..] = flags_and_length.to_ne_bytes();
    let payload = ctx.len().checked_sub(tcp_offset as u32 + u32::from(length >> 4) * 4)?;
    let ends = found & flags != 0;
    if payload == 0 && !ends {
        return None;
    }
    let (sequence, acknowledged) = (u32::from_be(sequence), u32::from_be(acknowledged));
    Some(Segment { ipv6: version == 6, tcp_offset, sequence, acknowledged, payload, ends })
}

#[inline(always)]
fn tcp_offset_v6(ctx: &SkBuffContext, mut next: u8) -> Option<usize> {
    let mut offset = 40;
    for _ in 0..IPV6_EXTENSIONS.len() {
        if next == IPPROTO_TCP {
            break;
        }
        if next != IPV6_EXTENSIONS[0] && next != IPV6_EXTENSIONS[1] && next != IPV6_EXTENSIONS[2] {
            return None;
        }
        let [following, length] = ctx.load::<[u8; 2]>(offset).ok()?;
        next = following;
        offset += 8 + length as usize * 8;
    }
    (next == IPPROTO_TCP).then_some(offset)
}

/// What is known of the packet's connection, found out at its first payload. `None`: nothing, or it has no socket yet.
#[inline(always)]
fn connection(
    ctx: &SkBuffContext,
    segment: &Segment,
    direction: Direction,
) -> Option<&'static mut Connection> {
    // SAFETY: the context's socket pointer, checked below as the verifier demands.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a socket pointer that is not null. A request socket has no full socket and no storage.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return None;
    }
    // SAFETY: as above.
    let state = unsafe { (*sk).state };
    // Data on the last packet of a handshake is filtered on the listener's behalf.
    if state == TCP_LISTEN {
        if segment.payload > 0
            && let Some(tuple) = Tuple::of(ctx, segment, direction)
        {
            // Full is not possible: the oldest goes.
            EARLY.insert(tuple.words, ktime_ns(), 0).ok();
        }
        return None;
    }
    if let Some(known) = storage(sk, core::ptr::null_mut(), 0) {
        return Some(known);
    }
    if segment.payload == 0 {
        // Nothing is known, so nothing was asked.
        return None;
    }
    let tuple = Tuple::of(ctx, segment, direction)?;
    let victim = if is_served(ctx, &tuple) { victim_of(ctx) } else { NO_VICTIM };
    // A server may speak first; then the acknowledgement tells where the other side's bytes begin.
    let next_in = match direction {
        Direction::In => segment.sequence,
        Direction::Out => segment.acknowledged,
    };
    let may_speak = state == TCP_ESTABLISHED
        || state == TCP_SYN_RECV
        || state == TCP_CLOSE_WAIT
        // It just does, if only for the last time.
        || matches!(direction, Direction::Out);
    let mut fresh = Connection {
        lock: bpf_spin_lock { val: 0 },
        next_in,
        since_ns: 0,
        victim,
        is_over: u32::from(!may_speak),
    };
    let Some(created) = storage(sk, &raw mut fresh, BPF_SK_STORAGE_GET_F_CREATE.into()) else {
        ThisCpu::get().drop(ctx, Drop::NoSocketState);
        return None;
    };
    if victim != NO_VICTIM {
        let since_ns = early(&tuple);
        if since_ns != 0 {
            begin(created, since_ns);
        }
    }
    Some(created)
}

/// When a request came in before the connection had a socket; 0: none did.
#[inline(always)]
fn early(tuple: &Tuple) -> u64 {
    // SAFETY: copied at once.
    let Some(since_ns) = (unsafe { EARLY.get(tuple.words) }).copied() else { return 0 };
    EARLY.remove(tuple.words).ok();
    since_ns
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, initial: *mut Connection, flags: u64) -> Option<&'static mut Connection> {
    let map = (&raw const CONNECTIONS).cast_mut();
    // SAFETY: a full socket and this program's own map. Ingress and egress of one socket may run at once on two CPUs;
    // every field is one word, and what must not be counted twice is changed under the lock.
    unsafe { bpf_sk_storage_get(map.cast(), sk.cast(), initial.cast(), flags).cast::<Connection>().as_mut() }
}

/// The victim row of the socket's cgroup.
#[inline(always)]
fn victim_of(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the program's own context.
    let id = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    let victim = find_place(Key::v2(id)).map_or(NO_VICTIM, Place::victim);
    if victim == NO_VICTIM {
        ThisCpu::get().drop(ctx, Drop::UnknownGroup);
    }
    victim
}

/// Whether somebody listens on the connection's local address and port. Asked once per connection: a lookup with the
/// remote port 0, which no connection has, falls through to the listener.
#[inline(always)]
fn is_served(ctx: &SkBuffContext, tuple: &Tuple) -> bool {
    let mut tuple = tuple.with_remote_port_0();
    let netns = i64::from(BPF_F_CURRENT_NETNS).cast_unsigned();
    // SAFETY: the tuple is on the stack and as long as said; a socket that is found is released at once.
    unsafe {
        let words = (&raw mut tuple.words).cast();
        let listener = bpf_sk_lookup_tcp(ctx.skb.skb.cast(), words, tuple.bytes, netns, 0);
        if listener.is_null() {
            return false;
        }
        bpf_sk_release(listener.cast());
    }
    true
}

/// A `struct bpf_sock_tuple`: remote address, local address, remote and local port, all in network order. Written as
/// words because a union of two lengths has bytes that older verifiers call uninitialised.
struct Tuple {
    words: [u32; 9],
    bytes: u32,
}

impl Tuple {
    #[inline(always)]
    fn of(ctx: &SkBuffContext, segment: &Segment, direction: Direction) -> Option<Self> {
        let incoming = matches!(direction, Direction::In);
        let (remote_port_at, local_port_at) = if incoming { (0, 2) } else { (2, 0) };
        let port = |at| ctx.load::<u16>(segment.tcp_offset + at).ok().map(u32::from);
        let ports = port(local_port_at)? << 16 | port(remote_port_at)?;
        if segment.ipv6 {
            let (remote_at, local_at) = if incoming { (8, 24) } else { (24, 8) };
            let remote = ctx.load::<[u32; 4]>(remote_at).ok()?;
            let local = ctx.load::<[u32; 4]>(local_at).ok()?;
            let words =
                [remote[0], remote[1], remote[2], remote[3], local[0], local[1], local[2], local[3], ports];
            return Some(Self { words, bytes: 36 });
        }
        let (remote_at, local_at) = if incoming { (12, 16) } else { (16, 12) };
        let (remote, local) = (ctx.load::<u32>(remote_at).ok()?, ctx.load::<u32>(local_at).ok()?);
        Some(Self { words: [remote, local, ports, 0, 0, 0, 0, 0, 0], bytes: 12 })
    }

    #[inline(always)]
    const fn with_remote_port_0(&self) -> Self {
        let mut words = self.words;
        words[if self.bytes == 36 { 8 } else { 2 }] &= 0xffff_0000;
        Self { words, bytes: self.bytes }
    }
}
