//! Container images without a registry: one layer made of files, in an archive that `ctr images import` takes.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Cursor, Read, Seek, Write},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The layer's name in the archive.
const LAYER: &str = "layer.tar";

/// An image to be made. It runs on Linux on x86-64 and has a /tmp.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// With a tag.
    pub name: &'a str,
    pub entrypoint: &'a [&'a str],
    /// Programs: where each is now, and its absolute path in the image.
    pub files: &'a [(&'a Path, &'a str)],
}

impl Image<'_> {
    /// Writes it as a Docker archive.
    ///
    /// # Errors
    /// Where a file cannot be read, or the archive not be written.
    pub fn write(&self, archive: &Path) -> Result<()> {
        pack(self.name, self.entrypoint, Cursor::new(self.layer()?), archive)
    }

    /// The same for the same files, whenever it is made: no times, no owners.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        append(&mut layer, EntryType::Directory, "tmp", 0o1777, &[])?;
        for (source, destination) in self.files {
            let content = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
            append(&mut layer, EntryType::Regular, destination.trim_start_matches('/'), 0o755, &content)?;
        }
        Ok(layer.into_inner()?)
    }
}

/// Writes an image as a Docker archive whose layer is there already, as a tar.
///
/// # Errors
/// Where the layer cannot be read, or the archive not be written.
pub fn pack(name: &str, entrypoint: &[&str], mut layer: impl Read + Seek, archive: &Path) -> Result<()> {
    let mut hash = Sha256::new();
    let layer_bytes = io::copy(&mut layer, &mut hash)?;
    layer.rewind()?;
    let configuration = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{:x}", hash.finalize())] },
    }))?;
    let configuration_name = format!("{}.json", digest(&configuration));
    let manifest = serde_json::to_vec(&json!([
        { "Config": configuration_name, "RepoTags": [name], "Layers": [LAYER] },
    ]))?;
    let write = || -> io::Result<()> {
        let mut parts = Builder::new(BufWriter::new(File::create(archive)?));
        append(&mut parts, EntryType::Regular, &configuration_name, 0o644, &configuration)?;
        append(&mut parts, EntryType::Regular, "manifest.json", 0o644, &manifest)?;
        parts.append_data(&mut header(EntryType::Regular, 0o644, layer_bytes), LAYER, layer)?;
        parts.into_inner()?.flush()
    };
    write().with_context(|| format!("cannot write {}", archive.display()))
}

/// Appends an entry without a time and without an owner, so that the same files make the same archive.
///
/// # Errors
/// Where the name does not fit.
pub fn append(
    archive: &mut Builder<impl Write>,
    kind: EntryType,
    name: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode, content.len() as u64), name, content)
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header
}

/// SHA-256, in hexadecimal.
pub fn digest(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    /// Names, modes and contents.
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

    #[test]
    fn the_archive_refers_to_its_parts_by_their_digests() {
        let directory = std::env::temp_dir().join(format!("enforcer-image-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (program, archive) = (directory.join("program"), directory.join("image.tar"));
        fs::write(&program, "#!").unwrap();
        let image = Image {
            name: "enforcer.dev/program:dev",
            entrypoint: &["/bin/program", "serve"],
            files: &[(&program, "/bin/program")],
        };
        image.write(&archive).unwrap();
        let parts = unpacked(&fs::read(&archive).unwrap());
        fs::remove_dir_all(&directory).unwrap();

        let (_, layer) = &parts["layer.tar"];
        let files = unpacked(layer);
        assert_eq!(files["bin/program"], (0o755, b"#!".to_vec()));
        assert_eq!(files["tmp"].0, 0o1777);
        let manifest: serde_json::Value = serde_json::from_slice(&parts["manifest.json"].1).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "enforcer.dev/program:dev");
        let name = manifest[0]["Config"].as_str().unwrap();
        let (_, configuration) = &parts[name];
        assert_eq!(name, format!("{}.json", digest(configuration)));
        let configuration: serde_json::Value = serde_json::from_slice(configuration).unwrap();
        assert_eq!(configuration["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(layer)));
        assert_eq!(configuration["config"]["Entrypoint"][1], "serve");
    }
}
