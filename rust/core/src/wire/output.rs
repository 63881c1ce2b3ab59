//! Bytes out: a growing buffer and a writer for each element (spec/stream 1, 2, 4, 7).
//!
//! What a caller of ours gets wrong (a name of 300 bytes) is an assertion here, not an error.

use super::command::Command;
use super::consts::{
    COMMAND, CONFIGURATION, DESCRIPTION, EOF, FILE_MAGIC, FILE_VERSION, FOOTER, PAGE_SIZE, RAM_CONTINUE, RAM_EOS, RAM_FLAGS, RAM_MEM_SIZE,
    SECTION_END, SECTION_FULL, SECTION_PART, SECTION_START, SUBSECTION,
};
use super::limits::MACHINE_NAME_MAX;

/// A buffer of stream bytes. Integers are big-endian.
#[derive(Debug, Clone, Default)]
pub struct Output(Vec<u8>);

impl Output {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// What was written, for keeps.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forget what was written, keep the room.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `n` zero bytes.
    pub fn zeros(&mut self, n: usize) {
        self.0.resize(self.0.len() + n, 0);
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Two bytes.
    pub fn be16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    /// Four bytes.
    pub fn be32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// Eight bytes.
    pub fn be64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    /// A counted string of at most 255 bytes.
    pub fn cstr8(&mut self, bytes: &[u8]) {
        self.u8(u8::try_from(bytes.len()).expect("a counted string has at most 255 bytes"));
        self.put(bytes);
    }

    // ---- whole elements

    /// Magic and version.
    pub fn file_header(&mut self) {
        self.be32(FILE_MAGIC);
        self.be32(FILE_VERSION);
    }

    /// The configuration element; its subsections follow, if any.
    pub fn configuration(&mut self, machine: &[u8]) {
        let length = u32::try_from(machine.len()).ok().filter(|n| *n <= MACHINE_NAME_MAX);
        self.u8(CONFIGURATION);
        self.be32(length.expect("a machine name has at most 255 bytes"));
        self.put(machine);
    }

    /// Subsection of the configuration: log2 of the target page.
    pub fn configuration_page_bits(&mut self, bits: u32) {
        self.subsection(b"configuration/target-page-bits", 1);
        self.be32(bits);
    }

    /// Subsection of the configuration: enabled capabilities that both sides must agree on.
    pub fn configuration_capabilities(&mut self, names: &[&[u8]]) {
        self.subsection(b"configuration/capabilities", 1);
        self.be32(u32::try_from(names.len()).expect("a few capabilities"));
        for name in names {
            self.cstr8(name);
        }
    }

    /// Subsection of the configuration: identity of the machine.
    pub fn configuration_uuid(&mut self, uuid: &[u8; 16]) {
        self.subsection(b"configuration/uuid", 1);
        self.put(uuid);
    }

    /// Header of a subsection; its payload follows.
    pub fn subsection(&mut self, name: &[u8], version: u32) {
        self.u8(SUBSECTION);
        self.cstr8(name);
        self.be32(version);
    }

    /// Header of a live handler's START section.
    pub fn section_start(&mut self, id: u32, idstr: &[u8], instance: u32, version: u32) {
        self.section(SECTION_START, id, idstr, instance, version);
    }

    /// Header of a PART section.
    pub fn section_part(&mut self, id: u32) {
        self.u8(SECTION_PART);
        self.be32(id);
    }

    /// Header of an END section.
    pub fn section_end(&mut self, id: u32) {
        self.u8(SECTION_END);
        self.be32(id);
    }

    /// Header of a FULL section.
    pub fn section_full(&mut self, id: u32, idstr: &[u8], instance: u32, version: u32) {
        self.section(SECTION_FULL, id, idstr, instance, version);
    }

    fn section(&mut self, kind: u8, id: u32, idstr: &[u8], instance: u32, version: u32) {
        assert!(!idstr.is_empty(), "a section has a name");
        self.u8(kind);
        self.be32(id);
        self.cstr8(idstr);
        self.be32(instance);
        self.be32(version);
    }

    /// Footer of a section.
    pub fn footer(&mut self, id: u32) {
        self.u8(FOOTER);
        self.be32(id);
    }

    /// A command with its payload.
    pub fn command(&mut self, command: &Command) {
        let mut payload = Self::new();
        command.payload(&mut payload);
        self.u8(COMMAND);
        self.be16(command.number());
        self.be16(u16::try_from(payload.len()).expect("a command's payload is far below 64 KiB"));
        self.put(payload.as_slice());
    }

    /// Command: use the channel's other direction from here on.
    pub fn open_return_path(&mut self) {
        self.command(&Command::OpenReturnPath);
    }

    /// Command: answer PONG with the same token.
    pub fn ping(&mut self, token: u32) {
        self.command(&Command::Ping(token));
    }

    /// Command: the machine is stopped, the last stage begins.
    pub fn switchover_start(&mut self) {
        self.command(&Command::SwitchoverStart);
    }

    /// End of the stream.
    pub fn eof(&mut self) {
        self.u8(EOF);
    }

    /// The description of the devices, as JSON.
    pub fn description(&mut self, text: &[u8]) {
        self.u8(DESCRIPTION);
        self.be32(u32::try_from(text.len()).expect("a description is far below 4 GiB"));
        self.put(text);
    }

    // ---- RAM payloads

    /// The word that opens the block list; `total` bytes over all blocks.
    pub fn mem_size(&mut self, total: u64) {
        self.record(total, RAM_MEM_SIZE);
    }

    /// An entry of the block list.
    pub fn block(&mut self, name: &[u8], used_length: u64) {
        self.cstr8(name);
        self.be64(used_length);
    }

    /// Behind an entry of the list, the positions of its bitmap and of its pages in a mapped-ram file.
    pub fn mapped_ram(&mut self, bitmap: u64, pages: u64) {
        self.be32(1);
        self.be64(PAGE_SIZE);
        self.be64(bitmap);
        self.be64(pages);
    }

    /// The word of a page record, then the block's name unless the record continues the last one's block.
    pub fn page_record(&mut self, offset: u64, flag: u64, name: Option<&[u8]>) {
        match name {
            Some(name) => {
                self.record(offset, flag);
                self.cstr8(name);
            }
            None => self.record(offset, flag | RAM_CONTINUE),
        }
    }

    /// End of a RAM payload.
    pub fn eos(&mut self) {
        self.record(0, RAM_EOS);
    }

    fn record(&mut self, offset: u64, flags: u64) {
        assert!(offset.is_multiple_of(PAGE_SIZE) && flags & !RAM_FLAGS == 0, "offset {offset:#x} or flags {flags:#x} overlap");
        self.be64(offset | flags);
    }
}
