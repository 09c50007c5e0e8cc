//! Offsets of kernel fields, from the running kernel's own type information.

use std::path::Path;

use btf_rs::{Backend, Btf, BtfType, Type};

/// Where the kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset could not be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{VMLINUX} cannot be read ({0}): the probes need the kernel's type information; use a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y (all current distributions), and mount sysfs on /sys"
    )]
    Absent(String),
    #[error("this kernel has no {0}: the probe that needs it is not available here")]
    Missing(String),
}

/// The running kernel's types.
pub struct KernelTypes(Btf);

impl KernelTypes {
    /// Maps the file rather than parsing it whole: a dozen lookups do not justify 30 MB.
    ///
    /// # Errors
    /// [`Error::Absent`] where the kernel has no BTF.
    pub fn of_running_kernel() -> Result<Self, Error> {
        Self::from_file(Path::new(VMLINUX))
    }

    fn from_file(path: &Path) -> Result<Self, Error> {
        let mapped = Btf::from_file_with_backend(path, Backend::Mmap);
        // sysfs files could not be mapped before 6.16.
        let types = mapped.or_else(|_| Btf::from_file(path));
        types.map(Self).map_err(|err| Error::Absent(err.to_string()))
    }

    /// The byte offset of a field, written as in C: `offset_of("task_struct", "sched_info.last_queued")`. Anonymous
    /// structs and unions on the way are looked through, as C does.
    ///
    /// # Errors
    /// [`Error::Missing`] where this kernel has no such field.
    pub fn offset_of(&self, structure: &str, path: &str) -> Result<u32, Error> {
        let missing = || Error::Missing(format!("{structure}.{path}"));
        let mut scope = self.structure(structure).ok_or_else(missing)?;
        let mut bits = 0;
        for field in path.split('.') {
            let (at, kind) = self.member(&scope, field).ok_or_else(missing)?;
            bits += at;
            scope = kind;
        }
        Ok(bits / 8)
    }

    /// Whether the field exists.
    pub fn has(&self, structure: &str, path: &str) -> bool {
        self.offset_of(structure, path).is_ok()
    }

    /// The value of an enumerator, such as `cpu_cgrp_id` of `cgroup_subsys_id`.
    ///
    /// # Errors
    /// [`Error::Missing`] where this kernel has no such enumerator.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32, Error> {
        let found =
            self.0.resolve_types_by_name(enumeration).unwrap_or_default().into_iter().find_map(|kind| {
                let Type::Enum(kind) = kind else { return None };
                kind.members.iter().find(|member| self.is_named(*member, name)).map(btf_rs::EnumMember::val)
            });
        found.ok_or_else(|| Error::Missing(format!("enum {enumeration}'s {name}")))
    }

    /// Whether the kernel offers a BTF tracepoint of this name.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.0.resolve_ids_by_name(&format!("btf_trace_{name}")).is_ok_and(|ids| !ids.is_empty())
    }

    /// Whether the first argument that a tracepoint hands to BTF programs is a pointer.
    pub fn tracepoint_hands_pointer(&self, name: &str) -> bool {
        let prototype = || {
            let typedef =
                self.0.resolve_types_by_name(&format!("btf_trace_{name}")).ok()?.into_iter().next()?;
            let pointer = self.0.resolve_chained_type(typedef.as_btf_type()?).ok()?;
            let Type::FuncProto(prototype) = self.0.resolve_chained_type(pointer.as_btf_type()?).ok()? else {
                return None;
            };
            // Before the arguments comes the pointer to the program's own data.
            self.stripped(self.0.resolve_chained_type(prototype.parameters.get(1)?).ok()?)
        };
        matches!(prototype(), Some(Type::Ptr(_)))
    }

    fn structure(&self, name: &str) -> Option<Type> {
        let candidates = self.0.resolve_types_by_name(name).ok()?;
        candidates.into_iter().find(|kind| matches!(kind, Type::Struct(_) | Type::Union(_)))
    }

    /// Offset in bits and type of a member, modifiers and typedefs stripped.
    fn member(&self, scope: &Type, name: &str) -> Option<(u32, Type)> {
        let (Type::Struct(scope) | Type::Union(scope)) = scope else { return None };
        scope.members.iter().find_map(|member| {
            let kind = self.stripped(self.0.resolve_chained_type(member).ok()?)?;
            if self.is_named(member, name) {
                return Some((member.bit_offset(), kind));
            }
            let anonymous = self.is_named(member, "");
            let (at, inner) = anonymous.then(|| self.member(&kind, name))??;
            Some((member.bit_offset() + at, inner))
        })
    }

    fn stripped(&self, mut kind: Type) -> Option<Type> {
        while let Type::Const(_) | Type::Volatile(_) | Type::Typedef(_) | Type::TypeTag(_) = kind {
            kind = self.0.resolve_chained_type(kind.as_btf_type()?).ok()?;
        }
        Some(kind)
    }

    /// An anonymous member may have an empty name or none.
    fn is_named(&self, item: &dyn BtfType, name: &str) -> bool {
        self.0.resolve_name(item).map_or(name.is_empty(), |found| found == name)
    }
}
