//! How long does an LS group take to answer, how many requests does it answer, and which wait for an answer?
//!
//! A request begins with the first new payload byte that comes in on a served TCP connection and ends with the first
//! payload byte that goes out after it. Served means: somebody listens on the connection's local address and port, so
//! calls that the group makes itself do not count. Repeated segments are recognised by their sequence numbers. A request
//! ends unanswered when the server says that it has no more to say (FIN) or either side breaks off (RST); a client that
//! has no more to say may still be answered.

use core::{arch::asm, mem::size_of};

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_spin_lock},
    helpers::{
        bpf_jiffies64, bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get,
        bpf_skb_cgroup_id,
        generated::{bpf_spin_lock as lock, bpf_spin_unlock as unlock},
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use enforcer_ebpf::{
    layout::{Drop, NO_VICTIM, Objective, Place, in_flight_bucket, slice_hash},
    table::Key,
};

use crate::{
    maps::{CONNECTIONS, Counter as _, EARLY, Early, OBJECTIVES, PENDING, ThisCpu, count},
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

/// What is known of one connection. Packets that come in and those that go out are often on different CPUs, and each cache
/// line that changes hands costs more than the rest of the program. So there are three: one that both look at and that changes
/// only when a request begins that counts, and one for each direction. The kernel puts the first byte 8 bytes into a line.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    /// When the last request began that counts, in ktime; 0: none did. The lowest bit is set ([`SPARSE`]) where only a part of
    /// the group's requests count.
    since_ns: u64,
    /// The victim row of the group that serves it; [`NO_VICTIM`]: not a served connection.
    victim: u32,
    rest_of_line: [u32; 11],
    /// The sequence number after the last byte seen coming in.
    next_in: u32,
    /// What the client had acknowledged when it asked last. Until it acknowledges more, what it says is more of that.
    heard: u32,
    /// Not 0: it made a request.
    has_asked: u32,
    rest_of_line_in: [u32; 13],
    /// `since_ns` of the last request that ended.
    ended_ns: u64,
    /// Held by whoever changes `ended_ns`, where the kernel cannot exchange a word at once: see [`By`].
    lock: bpf_spin_lock,
    unused: u32,
}

/// Marks the beginning of a request that [`PENDING`] counts.
const SPARSE: u64 = 1;

/// How `ended_ns` is changed. A client may break off while the server answers, and what was counted as begun must be counted
/// as ended exactly once. There are two sets of programs; the agent loads the first that the kernel takes.
#[derive(Clone, Copy)]
enum By {
    /// In one instruction (Linux 5.12).
    Exchange,
    /// Under the lock.
    Lock,
}

impl Connection {
    /// Whether a request is being served.
    #[inline(always)]
    const fn is_busy(&self) -> bool {
        self.since_ns != self.ended_ns
    }

    /// Ends the request being served and returns since when it was; 0: somebody else did.
    #[inline(always)]
    fn end(&mut self, by: By) -> u64 {
        let since_ns = self.since_ns;
        let was = match by {
            By::Exchange => exchange(&mut self.ended_ns, since_ns),
            By::Lock => {
                // SAFETY: a lock in a map's value, released on the only way out; nothing is called meanwhile.
                unsafe { lock(&raw mut self.lock) };
                let was = core::mem::replace(&mut self.ended_ns, since_ns);
                // SAFETY: locked above.
                unsafe { unlock(&raw mut self.lock) };
                was
            }
        };
        if was == since_ns {
            return 0;
        }
        if since_ns & SPARSE != 0 {
            pend(u64::MAX);
        }
        since_ns
    }
}

/// Stores `new` and returns what was there, in one instruction. Core has none for the BPF target, and its assembler takes
/// this one only for newer processors than the rest of the program needs: `r2 = xchg_64(r1 + 0, r2)`.
#[inline(always)]
fn exchange(word: &mut u64, new: u64) -> u64 {
    let was;
    // SAFETY: a valid, aligned reference; the instruction touches nothing else.
    unsafe { asm!(".byte 0xdb, 0x21, 0, 0, 0xe1, 0, 0, 0", in("r1") word, inlateout("r2") new => was) };
    was
}

/// First bytes of a request come in.
#[cgroup_skb]
pub fn request_in(ctx: SkBuffContext) -> i32 {
    packet_in(&ctx, By::Exchange)
}

/// The same for kernels before 5.12.
#[cgroup_skb]
pub fn request_in_locked(ctx: SkBuffContext) -> i32 {
    packet_in(&ctx, By::Lock)
}

/// First bytes of a response go out.
#[cgroup_skb]
pub fn response_out(ctx: SkBuffContext) -> i32 {
    packet_out(&ctx, By::Exchange)
}

/// The same for kernels before 5.12.
#[cgroup_skb]
pub fn response_out_locked(ctx: SkBuffContext) -> i32 {
    packet_out(&ctx, By::Lock)
}

/// The same for a group of which only a part of the requests count: most of the time there is nothing to be answered.
#[cgroup_skb]
pub fn response_out_sparse(ctx: SkBuffContext) -> i32 {
    let is_pending = PENDING.get_ptr(0).is_some_and(|pending| {
        // SAFETY: a word that others change at any time.
        unsafe { pending.read_volatile() != 0 }
    });
    if is_pending { packet_out(&ctx, By::Exchange) } else { PASS }
}

#[inline(always)]
fn packet_in(ctx: &SkBuffContext, by: By) -> i32 {
    if let Some(segment) = segment_of(ctx, RST)
        && let Some((connection, sk)) = connection(ctx, &segment, Direction::In)
        && connection.victim != NO_VICTIM
    {
        if segment.payload > 0 {
            let end = segment.sequence.wrapping_add(segment.payload);
            let is_new = end.wrapping_sub(connection.next_in).cast_signed() > 0;
            if is_new {
                connection.next_in = end;
                // The client has heard nothing since it asked last: this is more of it.
                let is_more = connection.has_asked != 0 && connection.heard == segment.acknowledged;
                if !is_more && may_answer(sk) {
                    (connection.has_asked, connection.heard) = (1, segment.acknowledged);
                    begin(connection, None);
                }
            }
        }
        if segment.ends && connection.is_busy() {
            give_up(ctx, connection, by);
        }
    }
    PASS
}

#[inline(always)]
fn packet_out(ctx: &SkBuffContext, by: By) -> i32 {
    if let Some(segment) = segment_of(ctx, FIN | RST)
        && let Some((connection, _)) = connection(ctx, &segment, Direction::Out)
        && connection.victim != NO_VICTIM
        && connection.is_busy()
    {
        if segment.payload > 0 {
            answer(ctx, connection, by);
        } else {
            give_up(ctx, connection, by);
        }
    }
    PASS
}

/// Whether a request of a group counts that begins now: where there are very many, a part of them tells as much. If so, what
/// marks it: [`SPARSE`] or 0.
#[inline(always)]
fn part_that_counts(objective: &Objective) -> Option<u64> {
    if objective.sampled == 0 {
        return Some(0);
    }
    // SAFETY: takes nothing and cannot fail.
    (slice_hash(unsafe { bpf_jiffies64() }) & objective.sampled == 0).then_some(SPARSE)
}

/// Counts sparse requests in flight; wraps, so `u64::MAX` takes one away.
#[inline(always)]
fn pend(number: u64) {
    if let Some(pending) = PENDING.get_ptr_mut(0) {
        // SAFETY: changed by one atomic instruction.
        unsafe { (*pending).add(number) };
    }
}

/// Whether the server may still speak. It does not after its own FIN.
#[inline(always)]
fn may_answer(sk: *mut bpf_sock) -> bool {
    // SAFETY: a socket pointer that is not null.
    let state = unsafe { (*sk).state };
    state == TCP_ESTABLISHED || state == TCP_SYN_RECV || state == TCP_CLOSE_WAIT
}

/// Begins a request now or `at` another time, if it counts.
#[inline(always)]
fn begin(connection: &mut Connection, at: Option<u64>) {
    let victim = connection.victim;
    let Some(objective) = OBJECTIVES.get(victim) else { return };
    let Some(part) = part_that_counts(objective) else { return };
    // What it has heard since may be older than its request: a greeting, or a push. One that nobody saw end, because nobody
    // looked, is over.
    if connection.is_busy() && connection.since_ns >= objective.counts_from_ns {
        return;
    }
    let since_ns = at.unwrap_or_else(ktime_ns) & !SPARSE | part;
    if part == SPARSE {
        // First, so that nobody who sees the request sees none pending.
        pend(1);
    }
    connection.since_ns = since_ns;
    let cpu = ThisCpu::get();
    in_flight(cpu, victim, since_ns, 1);
    if let Some(counts) = cpu.requests(victim) {
        counts.begun.add(1);
    }
}

/// A request is answered: latency counts.
#[inline(always)]
fn answer(ctx: &SkBuffContext, connection: &mut Connection, by: By) {
    let since_ns = connection.end(by);
    if since_ns == 0 {
        return;
    }
    let (cpu, victim) = (ThisCpu::get(), connection.victim);
    let Some(objective) = objective_at(victim, since_ns) else { return };
    let latency_ns = ktime_ns().saturating_sub(since_ns);
    in_flight(cpu, victim, since_ns, u32::MAX);
    let Some(counts) = cpu.requests(victim) else { return };
    counts.served.add(1);
    // Whoever answers as well on this CPU in the very instruction between loses what was counted since: readers bear that.
    counts.latency_ns += latency_ns;
    count(&mut counts.histogram, latency_ns);
    if objective.latency_ns < latency_ns {
        counts.slow.add(1);
        slow_request(ctx, cpu, victim);
    }
}

/// The connection is over, and the request being served will not be answered.
#[inline(always)]
fn give_up(ctx: &SkBuffContext, connection: &mut Connection, by: By) {
    let since_ns = connection.end(by);
    if since_ns == 0 {
        return;
    }
    let (cpu, victim) = (ThisCpu::get(), connection.victim);
    let Some(objective) = objective_at(victim, since_ns) else { return };
    let age_ns = ktime_ns().saturating_sub(since_ns);
    in_flight(cpu, victim, since_ns, u32::MAX);
    let Some(counts) = cpu.requests(victim) else { return };
    counts.unanswered.add(1);
    if objective.latency_ns < age_ns {
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

/// What holds for a request that began at `since_ns`. `None`: it does not count any more.
#[inline(always)]
fn objective_at(victim: u32, since_ns: u64) -> Option<&'static Objective> {
    OBJECTIVES.get(victim).filter(|objective| since_ns >= objective.counts_from_ns)
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

/// Where TCP begins after an IPv4 header without options, and after an IPv6 header without extensions.
const USUAL_V4: usize = 20;
const USUAL_V6: usize = 40;

/// The packet's TCP segment; `None` for other protocols, and for segments with neither payload nor one of `flags`.
#[inline(always)]
fn segment_of(ctx: &SkBuffContext, flags: u8) -> Option<Segment> {
    // Nearly all packets: plain headers that lie in one piece are looked at where they are.
    if let Some(ip) = in_place::<[u8; 20]>(ctx, 0) {
        if ip[0] == 0x45
            && let Some(words) = in_place::<[u32; 3]>(ctx, USUAL_V4 + 4)
        {
            let is_tcp = ip[9] == IPPROTO_TCP;
            return if is_tcp { segment(ctx, false, USUAL_V4, words, flags) } else { None };
        }
        if ip[0] >> 4 == 6
            && ip[6] == IPPROTO_TCP
            && let Some(words) = in_place::<[u32; 3]>(ctx, USUAL_V6 + 4)
        {
            return segment(ctx, true, USUAL_V6, words, flags);
        }
    }
    unusual_segment(ctx, flags)
}

/// A part of the packet, if it lies in its first piece.
#[inline(always)]
fn in_place<T>(ctx: &SkBuffContext, offset: usize) -> Option<&T> {
    // SAFETY: the program's own context; the kernel makes pointers of both words.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    if start + offset + size_of::<T>() > end {
        return None;
    }
    // SAFETY: within the packet, as the verifier checks. The network stack aligns IP headers to words; where it does not, the
    // kernel's loads take any alignment.
    Some(unsafe { &*((start + offset) as *const T) })
}

/// Each load is a call: as few as possible for a packet that says nothing.
#[inline(always)]
fn unusual_segment(ctx: &SkBuffContext, flags: u8) -> Option<Segment> {
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
    let words = ctx.load::<[u32; 3]>(tcp_offset + 4).ok()?;
    segment(ctx, version == 6, tcp_offset, &words, flags)
}

/// From the second to the fourth word of the TCP header.
#[inline(always)]
fn segment(
    ctx: &SkBuffContext,
    ipv6: bool,
    tcp_offset: usize,
    words: &[u32; 3],
    flags: u8,
) -> Option<Segment> {
    let [sequence, acknowledged, flags_and_length] = *words;
    let [length, found, ..] = flags_and_length.to_ne_bytes();
    let payload = ctx.len().checked_sub(tcp_offset as u32 + u32::from(length >> 4) * 4)?;
    let ends = found & flags != 0;
    if payload == 0 && !ends {
        return None;
    }
    let (sequence, acknowledged) = (u32::from_be(sequence), u32::from_be(acknowledged));
    Some(Segment { ipv6, tcp_offset, sequence, acknowledged, payload, ends })
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

/// What is known of the packet's connection, found out at its first payload, and its socket. `None`: nothing, or it has no
/// socket yet.
#[inline(always)]
fn connection(
    ctx: &SkBuffContext,
    segment: &Segment,
    direction: Direction,
) -> Option<(&'static mut Connection, *mut bpf_sock)> {
    // SAFETY: the context's socket pointer, checked below as the verifier demands.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // The kernel finds nothing for what is no full socket.
    if let Some(known) = storage(sk, core::ptr::null_mut(), 0) {
        return Some((known, sk));
    }
    // SAFETY: a socket pointer that is not null. A request socket has no full socket and no storage.
    let full = unsafe { bpf_sk_fullsock(sk) };
    if full.is_null() {
        return None;
    }
    // SAFETY: as above.
    let state = unsafe { (*full).state };
    // Data on the last packet of a handshake is filtered on the listener's behalf.
    if state == TCP_LISTEN {
        if segment.payload > 0
            && let Some(tuple) = Tuple::of(ctx, segment, direction)
        {
            // Full is not possible: the oldest goes.
            let early = Early { since_ns: ktime_ns(), acknowledged: segment.acknowledged.into() };
            EARLY.insert(tuple.words, early, 0).ok();
        }
        return None;
    }
    if segment.payload == 0 {
        // Nothing is known, so nothing was asked.
        return None;
    }
    let tuple = Tuple::of(ctx, segment, direction)?;
    // Without a place it is not settled: its cgroup may get one in a moment.
    let victim = if is_served(ctx, &tuple) { victim_of(ctx)? } else { NO_VICTIM };
    // A server may speak first; then the acknowledgement tells where the other side's bytes begin.
    let next_in = match direction {
        Direction::In => segment.sequence,
        Direction::Out => segment.acknowledged,
    };
    let mut fresh = Connection {
        since_ns: 0,
        victim,
        rest_of_line: [0; 11],
        next_in,
        heard: 0,
        has_asked: 0,
        rest_of_line_in: [0; 13],
        ended_ns: 0,
        lock: bpf_spin_lock { val: 0 },
        unused: 0,
    };
    let Some(created) = storage(full, &raw mut fresh, BPF_SK_STORAGE_GET_F_CREATE.into()) else {
        ThisCpu::get().drop(ctx, Drop::NoSocketState);
        return None;
    };
    if victim != NO_VICTIM {
        // What the server said first is what the client had acknowledged.
        let heard = match direction {
            Direction::In => segment.acknowledged,
            Direction::Out => segment.sequence,
        };
        if let Some(since_ns) = early(&tuple, heard) {
            (created.has_asked, created.heard) = (1, heard);
            begin(created, Some(since_ns));
        }
    }
    // The context's pointer in any case: the verifier wants one kind in one place.
    Some((created, sk))
}

/// When a request came in before the connection had a socket, whose client has `heard` so much. If it has heard more since,
/// that was answered, or it was another connection's.
#[inline(always)]
fn early(tuple: &Tuple, heard: u32) -> Option<u64> {
    // SAFETY: copied at once.
    let early = (unsafe { EARLY.get(tuple.words) }).copied()?;
    EARLY.remove(tuple.words).ok();
    (early.acknowledged == u64::from(heard)).then_some(early.since_ns)
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, initial: *mut Connection, flags: u64) -> Option<&'static mut Connection> {
    let map = (&raw const CONNECTIONS).cast_mut();
    // SAFETY: a full socket and this program's own map. Ingress and egress of one socket may run at once on two CPUs;
    // every field is one word, and what must not be counted twice is changed under the lock.
    unsafe { bpf_sk_storage_get(map.cast(), sk.cast(), initial.cast(), flags).cast::<Connection>().as_mut() }
}

/// The victim row of the socket's cgroup, or [`NO_VICTIM`]. `None`: it has no place yet.
#[inline(always)]
fn victim_of(ctx: &SkBuffContext) -> Option<u32> {
    // SAFETY: the program's own context.
    let id = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    let place = find_place(Key::v2(id));
    if place.is_none() {
        ThisCpu::get().drop(ctx, Drop::UnknownGroup);
    }
    place.map(Place::victim)
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
