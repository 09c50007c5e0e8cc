//! How long does an LS group take to answer, and how many requests does it answer?
//!
//! A request begins with the first new payload byte that comes in on a served TCP connection and ends with the first
//! payload byte that goes out after it. Served means: somebody listens on the connection's local address and port, so
//! calls that the group makes itself do not count. Repeated segments are recognised by their sequence numbers.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use enforcer_ebpf::{
    layout::{Drop, NO_VICTIM, Place},
    table::Key,
};

use crate::{
    maps::{CONNECTIONS, EARLY, OBJECTIVES, ThisCpu, count},
    probes::onset::slow_request,
    task::{find_place, ktime_ns},
};

const PASS: i32 = 1;
const IPPROTO_TCP: u8 = 6;
/// Extension headers that may stand between IPv6 and TCP here: hop-by-hop, routing, destination options.
const IPV6_EXTENSIONS: [u8; 3] = [0, 43, 60];
const TCP_LISTEN: u32 = 10;

/// What is known of one connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    /// When the request being served began, in ktime; 0: none is.
    since_ns: u64,
    /// The sequence number after the last byte seen coming in.
    next_in: u32,
    /// The victim row of the group that serves it; [`NO_VICTIM`]: not a served connection.
    victim: u32,
}

/// First bytes of a request come in.
#[cgroup_skb]
pub fn request_in(ctx: SkBuffContext) -> i32 {
    if let Some(segment) = payload_of(&ctx)
        && let Some(connection) = connection(&ctx, &segment, Direction::In)
    {
        let end = segment.sequence.wrapping_add(segment.payload);
        let is_new = end.wrapping_sub(connection.next_in).cast_signed() > 0;
        if connection.victim != NO_VICTIM && is_new {
            connection.next_in = end;
            if connection.since_ns == 0 {
                connection.since_ns = ktime_ns();
            }
        }
    }
    PASS
}

/// First bytes of a response go out.
#[cgroup_skb]
pub fn response_out(ctx: SkBuffContext) -> i32 {
    if let Some(segment) = payload_of(&ctx)
        && let Some(connection) = connection(&ctx, &segment, Direction::Out)
        && connection.victim != NO_VICTIM
        && connection.since_ns != 0
    {
        let latency_ns = ktime_ns().saturating_sub(connection.since_ns);
        connection.since_ns = 0;
        record(&ctx, connection.victim, latency_ns);
    }
    PASS
}

#[inline(always)]
fn record(ctx: &SkBuffContext, victim: u32, latency_ns: u64) {
    let cpu = ThisCpu::get();
    let Some(counts) = cpu.requests(victim) else { return };
    counts.served += 1;
    counts.latency_ns += latency_ns;
    count(&mut counts.histogram, latency_ns);
    if OBJECTIVES.get(victim).is_some_and(|objective| objective.latency_ns < latency_ns) {
        counts.slow += 1;
        slow_request(ctx, cpu, victim);
    }
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// A TCP segment with payload.
struct Segment {
    ipv6: bool,
    tcp_offset: usize,
    sequence: u32,
    payload: u32,
}

/// The packet's TCP segment; `None` for other protocols and for segments without payload.
#[inline(always)]
fn payload_of(ctx: &SkBuffContext) -> Option<Segment> {
    let version = ctx.load::<u8>(0).ok()? >> 4;
    let tcp_offset = match version {
        4 => {
            if ctx.load::<u8>(9).ok()? != IPPROTO_TCP {
                return None;
            }
            (ctx.load::<u8>(0).ok()? & 15) as usize * 4
        }
        6 => tcp_offset_v6(ctx)?,
        _ => return None,
    };
    let sequence = u32::from_be(ctx.load::<u32>(tcp_offset + 4).ok()?);
    let tcp_bytes = u32::from(ctx.load::<u8>(tcp_offset + 12).ok()? >> 4) * 4;
    let payload = ctx.len().checked_sub(tcp_offset as u32 + tcp_bytes)?;
    (payload > 0).then_some(Segment { ipv6: version == 6, tcp_offset, sequence, payload })
}

#[inline(always)]
fn tcp_offset_v6(ctx: &SkBuffContext) -> Option<usize> {
    let mut next = ctx.load::<u8>(6).ok()?;
    let mut offset = 40;
    for _ in 0..IPV6_EXTENSIONS.len() {
        if next == IPPROTO_TCP {
            break;
        }
        if next != IPV6_EXTENSIONS[0] && next != IPV6_EXTENSIONS[1] && next != IPV6_EXTENSIONS[2] {
            return None;
        }
        next = ctx.load::<u8>(offset).ok()?;
        offset += 8 + ctx.load::<u8>(offset + 1).ok()? as usize * 8;
    }
    (next == IPPROTO_TCP).then_some(offset)
}

/// What is known of the packet's connection, found out at its first payload.
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
    // SAFETY: as above. Data on the last packet of a handshake is filtered on the listener's behalf.
    if unsafe { (*sk).state } == TCP_LISTEN {
        if let Some(tuple) = Tuple::of(ctx, segment, direction) {
            // Full is not possible: the oldest goes.
            EARLY.insert(tuple.words, ktime_ns(), 0).ok();
        }
        return None;
    }
    if let Some(known) = storage(sk, core::ptr::null_mut(), 0) {
        return Some(known);
    }
    let tuple = Tuple::of(ctx, segment, direction)?;
    let victim = if is_served(ctx, &tuple) { victim_of(ctx) } else { NO_VICTIM };
    // A server may speak first; then the acknowledgement tells where the other side's bytes begin.
    let next_in = match direction {
        Direction::In => segment.sequence,
        Direction::Out => u32::from_be(ctx.load::<u32>(segment.tcp_offset + 8).ok()?),
    };
    let mut fresh = Connection { since_ns: early(&tuple), next_in, victim };
    let created = storage(sk, &raw mut fresh, BPF_SK_STORAGE_GET_F_CREATE.into());
    if created.is_none() {
        ThisCpu::get().drop(ctx, Drop::NoSocketState);
    }
    created
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
    // every field is one word, and the worst outcome is one request missed.
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
