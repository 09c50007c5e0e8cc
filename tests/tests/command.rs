//! The command line, as anybody may use it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Output;

use enforcer_tests::agent::{Files, enforcer};

fn run(arguments: &[&str]) -> Output {
    enforcer().unwrap().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_printed_policy_is_valid_yaml_with_comments() {
    let output = run(&["agent", "--print-policy"]);
    assert!(output.status.success());
    let policy = text(&output.stdout);
    assert!(policy.contains("groups:") && policy.contains("# "), "{policy}");
}

#[test]
fn bad_policies_name_line_and_cure_and_exit_with_2() {
    let files = Files::new("bad-policies").unwrap();
    let good = "groups:\n- name: web\n  class: LS\n  cgroups: [web]\n";
    for (policy, line, cure) in [
        (format!("{good}  colour: red\n"), 5, "unknown field"),
        (good.replace("[web]", "['web[']"), 4, "close it"),
        (format!("{good}- name: job\n  class: BE\n  cgroups: ['w*']\n"), 7, "make them disjoint"),
        (format!("{good}  slo: {{ requestLatency: {{ p99: 0s }} }}\n"), 5, "must lie between"),
        (format!("{good}- name: job\n  class: BE\n  cgroups: [job]\n  floor: 4096\n"), 8, "lower them"),
    ] {
        let path = files.policy(&policy).unwrap();
        let output = run(&["agent", "--policy", path.to_str().unwrap()]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{policy}\n{message}");
        assert!(message.contains(&format!("policy.yaml:{line}: ")), "line {line}:\n{policy}\n{message}");
        assert!(message.contains(cure), "{message}");
        assert_eq!(message.lines().count(), 1, "one sentence, no backtrace: {message}");
    }
}

#[test]
fn a_missing_policy_is_told_with_the_cure() {
    let output = run(&["agent", "--policy", "/no/such/file"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("/no/such/file") && message.contains("--print-policy"), "{message}");
}

#[test]
fn top_without_an_agent_says_what_to_do() {
    let output = run(&["top", "--once", "--agent", "127.0.0.1:1"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("start `enforcer agent`"), "{message}");
}

#[test]
fn check_prints_facts_with_cures_as_text_and_json() {
    let output = run(&["check"]);
    let table = text(&output.stdout);
    assert!(table.contains("Therefore:") && table.contains("kernel"), "{table}");
    let json: serde_json::Value = serde_json::from_slice(&run(&["check", "--json"]).stdout).unwrap();
    for finding in json["findings"].as_array().unwrap() {
        let lacks = finding["bearing"] != "good";
        assert!(!lacks || finding["cure"].is_string(), "no cure: {finding}");
    }
}

#[test]
fn without_privileges_check_and_agent_say_so_and_exit_with_2() {
    if !rustix::process::geteuid().is_root() {
        // The ordinary case; root has to become somebody else first.
        assert_eq!(run(&["check"]).status.code(), Some(2));
        return;
    }
    let files = Files::new("unprivileged").unwrap();
    let policy = files.policy("groups:\n- name: web\n  class: LS\n  cgroups: [web]\n").unwrap();
    let copy = files.path().join("enforcer");
    std::fs::copy(enforcer_rig::process::built("enforcer").unwrap(), &copy).unwrap();
    let unprivileged = |arguments: &[&str]| {
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new(&copy);
        command.args(arguments).uid(65_534).gid(65_534).output().unwrap()
    };
    let output = unprivileged(&["check"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("run as root"), "{}", text(&output.stdout));
    let state = files.path().join("state");
    let output = unprivileged(&[
        "agent",
        "--policy",
        policy.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(!message.contains("panicked") && message.lines().count() == 1, "{message}");
}
