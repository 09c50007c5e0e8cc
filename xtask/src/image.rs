//! `cargo xtask image`: a container image with nothing but the agent in it, made without Docker.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::cluster::image;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use tar::{Builder, EntryType};

use crate::{
    build,
    programs::{is_root, root},
};

/// What to make.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name and tag of the image; without a tag, the agent's version.
    #[arg(long, default_value = NAME, value_name = "NAME")]
    name: String,
    /// Where to write it.
    #[arg(long, default_value = OUTPUT, value_name = "FILE")]
    output: PathBuf,
}

/// The chart's `image.repository`. It has a domain, or container runtimes would put a registry's before it, and is nobody's
/// registry: it has to be brought to the nodes.
const NAME: &str = "enforcer.dev/enforcer";
const OUTPUT: &str = "target/image/enforcer.tar";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Nodes fetch it one after the other while they are updated.
const LARGEST: u64 = 30 << 20;

/// With what the chart expects.
impl Default for Args {
    fn default() -> Self {
        Self { name: NAME.to_owned(), output: OUTPUT.into() }
    }
}

pub fn run(args: &Args) -> Result<()> {
    make(args)?;
    let sudo = if is_root() { "" } else { "sudo " };
    println!("on a node: {sudo}ctr -n k8s.io images import {}", args.output.display());
    Ok(())
}

/// Makes it, and returns where it is.
pub fn make(args: &Args) -> Result<PathBuf> {
    let program = build::image_agent()?;
    let program = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let name = with_tag(&args.name);
    let archive = Image { name: &name, version: VERSION, files: &files(&program) }.archive()?;
    let output = root().join(&args.output);
    if let Some(directory) = output.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(&output, &archive).with_context(|| format!("cannot write {}", output.display()))?;
    let size = archive.len() as u64;
    println!("{}: {name}, {:.1} MiB", output.display(), size as f64 / f64::from(1 << 20));
    ensure!(size <= LARGEST, "an image of more than {} MiB is too large", LARGEST >> 20);
    Ok(output)
}

fn with_tag(name: &str) -> String {
    let has_tag = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if has_tag { name.to_owned() } else { format!("{name}:{VERSION}") }
}

/// All that is in the image.
fn files(program: &[u8]) -> Vec<Entry<'_>> {
    // Users that securityContext names by number, for programs that ask for a name.
    const PASSWD: &[u8] = b"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
    const GROUP: &[u8] = b"root:x:0:\nnonroot:x:65532:\n";
    vec![
        Entry::directory("etc", 0o755),
        Entry { path: "etc/group", mode: 0o644, content: Some(GROUP) },
        Entry { path: "etc/passwd", mode: 0o644, content: Some(PASSWD) },
        Entry::directory("tmp", 0o1777),
        Entry::directory("usr", 0o755),
        Entry::directory("usr/bin", 0o755),
        Entry { path: "usr/bin/enforcer", mode: 0o755, content: Some(program) },
    ]
}

/// A file or a directory of the image.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    path: &'a str,
    mode: u32,
    /// `None`: a directory.
    content: Option<&'a [u8]>,
}

impl Entry<'_> {
    const fn directory(path: &'static str, mode: u32) -> Self {
        Self { path, mode, content: None }
    }
}

/// An image for Linux on x86-64: one layer.
#[derive(Clone, Copy, Debug)]
struct Image<'a> {
    name: &'a str,
    version: &'a str,
    files: &'a [Entry<'a>],
}

impl Image<'_> {
    /// An OCI image layout in a tar, which `ctr images import`, podman and docker load. The same for the same files, whenever
    /// it is made: no times.
    fn archive(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        for entry in self.files {
            append(&mut layer, entry)?;
        }
        let layer = layer.into_inner()?;
        let mut compressed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        compressed.write_all(&layer)?;

        let mut blobs = BTreeMap::new();
        let layer = Blob::new(&mut blobs, compressed.finish()?, Some(digest(&layer)));
        let configuration = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                // The agent's container says otherwise.
                "User": "65532:65532",
                "Entrypoint": ["/usr/bin/enforcer"],
                "Env": ["PATH=/usr/bin"],
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": "enforcer",
                    "org.opencontainers.image.version": self.version,
                    "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
                    "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                },
            },
            "rootfs": { "type": "layers", "diff_ids": [layer.uncompressed] },
            "history": [{ "created_by": "cargo xtask image" }],
        });
        let configuration = Blob::new(&mut blobs, serde_json::to_vec(&configuration)?, None);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": configuration.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
        });
        let manifest = Blob::new(&mut blobs, serde_json::to_vec(&manifest)?, None);
        let mut in_index = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        let tag = self.name.rsplit(':').next().unwrap_or_default();
        in_index["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        in_index["annotations"] = json!({
            // containerd's, and the specification's.
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [in_index],
        });
        // What older versions of docker and podman read instead.
        let docker = json!([
            { "Config": configuration.path(), "RepoTags": [self.name], "Layers": [layer.path()] },
        ]);

        let mut archive = Builder::new(Vec::new());
        let mut file = |path: &str, content: &[u8]| {
            append(&mut archive, &Entry { path, mode: 0o644, content: Some(content) })
        };
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file("index.json", &serde_json::to_vec(&index)?)?;
        file("manifest.json", &serde_json::to_vec(&docker)?)?;
        for (path, content) in &blobs {
            file(path, content)?;
        }
        Ok(archive.into_inner()?)
    }
}

/// Something that is named by its digest.
struct Blob {
    digest: String,
    size: usize,
    /// Digest of what it holds, where it is compressed.
    uncompressed: Option<String>,
}

impl Blob {
    /// Puts it among the others, by its path.
    fn new(blobs: &mut BTreeMap<String, Vec<u8>>, content: Vec<u8>, uncompressed: Option<String>) -> Self {
        let blob = Self { digest: digest(&content), size: content.len(), uncompressed };
        blobs.insert(blob.path(), content);
        blob
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

fn append(archive: &mut Builder<Vec<u8>>, entry: &Entry<'_>) -> io::Result<()> {
    let (kind, content) = match entry.content {
        Some(content) => (EntryType::Regular, content),
        None => (EntryType::Directory, &[][..]),
    };
    image::append(archive, kind, entry.path, entry.mode, content)
}

/// As OCI writes it.
fn digest(content: &[u8]) -> String {
    format!("sha256:{}", image::digest(content))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    /// Modes and contents, by name.
    fn unpacked(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, (entry.header().mode().unwrap(), content))
        });
        entries.collect()
    }

    /// The blob that a descriptor names, which must be what it says.
    fn blob(parts: &BTreeMap<String, (u32, Vec<u8>)>, descriptor: &Value) -> Vec<u8> {
        let named = descriptor["digest"].as_str().unwrap();
        let content = &parts[&format!("blobs/{}", named.replace(':', "/"))].1;
        assert_eq!(
            (digest(content).as_str(), Some(content.len() as u64)),
            (named, descriptor["size"].as_u64())
        );
        content.clone()
    }

    #[test]
    fn every_part_is_found_by_its_digest_down_to_the_program() {
        let files = files(b"\x7fELF");
        let image = Image { name: "enforcer.dev/enforcer:9.9.9", version: "9.9.9", files: &files };
        let parts = unpacked(&image.archive().unwrap());
        let json = |content: &[u8]| serde_json::from_slice::<Value>(content).unwrap();

        let index = json(&parts["index.json"].1);
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], image.name);
        let manifest = json(&blob(&parts, &index["manifests"][0]));
        let configuration = json(&blob(&parts, &manifest["config"]));
        let compressed = blob(&parts, &manifest["layers"][0]);
        let mut layer = Vec::new();
        GzDecoder::new(compressed.as_slice()).read_to_end(&mut layer).unwrap();
        assert_eq!(configuration["rootfs"]["diff_ids"][0], digest(&layer));

        let in_layer = unpacked(&layer);
        assert_eq!(in_layer["usr/bin/enforcer"], (0o755, b"\x7fELF".to_vec()));
        assert_eq!(in_layer["tmp"].0, 0o1777);
        let entrypoint = configuration["config"]["Entrypoint"][0].as_str().unwrap();
        assert!(in_layer.contains_key(entrypoint.trim_start_matches('/')), "{entrypoint}");

        let docker = json(&parts["manifest.json"].1);
        assert_eq!(docker[0]["RepoTags"][0], image.name);
        assert!(parts.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn the_same_files_make_the_same_image() {
        let files = files(b"x");
        let archive = || Image { name: "a:1", version: "1", files: &files }.archive().unwrap();
        assert_eq!(archive(), archive());
    }

    #[test]
    fn a_name_without_a_tag_gets_the_version() {
        assert_eq!(with_tag("enforcer.dev/enforcer"), format!("enforcer.dev/enforcer:{VERSION}"));
        assert_eq!(with_tag("host:5000/enforcer"), format!("host:5000/enforcer:{VERSION}"));
        assert_eq!(with_tag("host:5000/enforcer:1"), "host:5000/enforcer:1");
    }
}
