//! `cargo xtask manifests`: the chart as plain YAML, for those who use no Helm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    go::Module,
    programs::{root, run_quietly},
};

/// Whether to write.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Write nothing; fail if daemonset/enforcer.yaml is not what the chart renders, or if Helm's linter complains.
    #[arg(long)]
    check: bool,
}

/// Below the project's root.
pub const CHART: &str = "daemonset/chart/enforcer";
const RENDERED: &str = "daemonset/enforcer.yaml";
/// Of everything in it.
pub const NAMESPACE: &str = "enforcer-system";
const HEAD: &str = "\
# enforcer with the chart's default values. Generated: change daemonset/chart/enforcer, then run `cargo xtask manifests`.
#
# kubectl apply --server-side -f enforcer.yaml
#
# Everything is installed, whether Koordinator's own CRDs, priority classes and ConfigMap are there or not: with Koordinator in
# the cluster use the chart, which leaves them alone. How to uninstall: see README.md beside this file.
";

pub fn run(args: Args) -> Result<()> {
    let helm = helm()?;
    let chart = root().join(CHART);
    run_quietly(Command::new(&helm).args(["lint", "--strict"]).arg(&chart))
        .context("the chart has faults")?;
    for values in value_files(&chart)? {
        let with = |command: &mut Command| run_quietly(command.arg("--values").arg(&values));
        with(&mut template(&helm, &chart))
            .and_then(|_| with(Command::new(&helm).args(["lint", "--strict"]).arg(&chart)))
            .with_context(|| format!("the chart has faults with {}", values.display()))?;
    }
    // Hooks are Helm's.
    let output = run_quietly(template(&helm, &chart).args(["--no-hooks", "--set", "createNamespace=true"]))?;
    let text = HEAD.to_owned() + &tidied(&String::from_utf8(output.stdout)?);

    let path = root().join(RENDERED);
    let old = fs::read_to_string(&path).unwrap_or_default();
    if args.check {
        return is_fresh(&old, &text);
    }
    if old == text {
        println!("{RENDERED} is what the chart renders");
        return Ok(());
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{RENDERED} written");
    Ok(())
}

/// What the chart renders, hooks included, with its defaults and with each file of values that it is tried with: names and
/// objects.
pub fn all_rendered() -> Result<Vec<(String, String)>> {
    let (helm, chart) = (helm()?, root().join(CHART));
    let defaults = std::iter::once(("its defaults".to_owned(), template(&helm, &chart)));
    let tried = value_files(&chart)?.into_iter().map(|values| {
        let mut command = template(&helm, &chart);
        command.arg("--values").arg(&values);
        (values.file_name().unwrap_or_default().display().to_string(), command)
    });
    let render = |(name, mut command): (String, Command)| {
        let output = run_quietly(&mut command)?;
        Ok((name, String::from_utf8(output.stdout)?))
    };
    defaults.chain(tried).map(render).collect()
}

fn template(helm: &Path, chart: &Path) -> Command {
    let mut command = Command::new(helm);
    command.args(["template", "enforcer"]).arg(chart).args(["--namespace", NAMESPACE]);
    command
}

/// Values that the chart is tried with besides its defaults.
fn value_files(chart: &Path) -> Result<Vec<PathBuf>> {
    let directory = chart.join("ci");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    ensure!(!files.is_empty(), "{} is empty", directory.display());
    Ok(files)
}

/// Helm 3 of the very version: that of the PATH, else one that is built.
pub fn helm() -> Result<PathBuf> {
    let version = format!("v{}", Module::Helm.version());
    // One that cannot tell is none that can be used.
    let found = run_quietly(Command::new("helm").args(["version", "--template", "{{.Version}}"]));
    match found {
        Ok(output) if output.stdout == version.as_bytes() => Ok("helm".into()),
        _ => Module::Helm.program("helm"),
    }
}

/// Without white space at ends of lines and without empty lines, which templates leave behind.
fn tidied(rendered: &str) -> String {
    let lines = rendered.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn is_fresh(old: &str, new: &str) -> Result<()> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let difference = (0..old.len().max(new.len())).find(|&index| old.get(index) != new.get(index));
    if let Some(index) = difference {
        let line = |lines: &[&str]| lines.get(index).copied().unwrap_or("(nothing)").to_owned();
        bail!(
            "{RENDERED} is stale: run `cargo xtask manifests` and commit it.\nline {}: {}\nthe chart renders: {}",
            index + 1,
            line(&old),
            line(&new)
        );
    }
    println!("{RENDERED} is what the chart renders");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_templates_leave_behind_is_taken_away() {
        assert_eq!(tidied("---\n\na:  \n  b: 1\n\n"), "---\na:\n  b: 1\n");
    }

    #[test]
    fn a_stale_file_is_told_with_its_line_and_the_cure() {
        assert!(is_fresh("a\nb\n", "a\nb\n").is_ok());
        for (old, new) in [("a\nb\n", "a\nc\n"), ("a\n", "a\nc\n"), ("a\nb\n", "a\n"), ("", "a\n")] {
            let error = is_fresh(old, new).unwrap_err().to_string();
            assert!(error.contains("cargo xtask manifests") && error.contains("line "), "{error}");
        }
    }
}
