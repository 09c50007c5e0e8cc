//! Loss on one connection: a socket filter throws away some of what comes in before TCP sees it, so the other side has to
//! send it again. Needs no privilege, no module and no network of its own, and is the same on every kernel.

use std::{io, mem::size_of, net::TcpStream, os::fd::AsRawFd as _};

/// From now on, one of so many packets that come in is lost at random.
///
/// # Errors
/// What `setsockopt(2)` says.
#[expect(clippy::cast_possible_truncation, reason = "small constants")]
pub fn lose_one_in(connection: &TcpStream, number: u32) -> io::Result<()> {
    const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, number),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0) },
        statement(libc::BPF_RET | libc::BPF_K, 0),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies as many bytes as said from `filter`, and the program that it points to; both outlive the
    // call.
    let result = unsafe {
        libc::setsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Segments that this side has sent again so far.
///
/// # Errors
/// What `getsockopt(2)` says.
#[expect(clippy::cast_possible_truncation, reason = "small constants")]
pub fn sent_again(connection: &TcpStream) -> io::Result<u32> {
    // SAFETY: a plain structure of numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info.tcpi_total_retrans) } else { Err(io::Error::last_os_error()) }
}
