use enforcer::{kernel::{probes::*, support::*}, cgroup::hierarchy::Hierarchy};
use std::{os::unix::fs::MetadataExt, time::Duration, fs};
fn main() {
    let t = std::time::Instant::now();
    let support = Support::of_running_kernel(std::env::args().nth(1).is_some()).unwrap();
    println!("{support:?} {:?}", t.elapsed());
    let cpus = possible_cpus().unwrap();
    let sizes = Sizes { cpus, slots: 1024, victims: 8, culprits: 8 };
    let mut l = Probes::load(&support, Identity::Both, sizes).unwrap();
    println!("loaded {:?} {} missing {:?}", t.elapsed(), sizes.memory_bytes(), l.probes.request_latency_missing);
    let d = "/sys/fs/cgroup/unified/smoke";
    fs::create_dir_all(d).unwrap();
    let ino = fs::metadata(d).unwrap().ino();
    let slot = l.slots.allot(Hierarchy::V2.key(ino), 1, 3, Duration::ZERO, |s| l.counters.clear_slot(s)).unwrap();
    let _links = l.probes.attach_request_latency(&fs::File::open(d).unwrap()).unwrap();
    fs::write(format!("{d}/cgroup.procs"), "0").unwrap();
    let lis = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let a = lis.local_addr().unwrap();
    let h = std::thread::spawn(move || { use std::io::*; let (mut s,_) = lis.accept().unwrap(); let mut b=[0;64]; loop { let n=s.read(&mut b).unwrap(); if n==0 {break} std::thread::sleep(Duration::from_millis(2)); s.write_all(&b[..n]).unwrap(); } });
    { use std::io::*; let mut c = std::net::TcpStream::connect(a).unwrap(); let mut b=[0;64]; for _ in 0..100 { c.write_all(b"hello").unwrap(); c.read(&mut b).unwrap(); } }
    h.join().unwrap();
    println!("{:?} {:?}", l.counters.wait(slot), l.counters.requests(1));
    for c in 0..5 { println!("blame {c}: {}", l.counters.blame_ns(1, c)); }
    println!("other {:?} idle {:?}", l.counters.wait(0), l.counters.wait(1));
    fs::write("/sys/fs/cgroup/unified/cgroup.procs", std::process::id().to_string()).unwrap();
    for d in enforcer_ebpf::layout::Drop::ALL { println!("{d:?} {}", l.counters.drops(d)); }
    let s = fs::read_to_string("/proc/self/status").unwrap();
    for line in s.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM")) { println!("{line}"); }
    fs::remove_dir(d).unwrap();
}
