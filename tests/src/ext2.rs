//! An empty ext2 file system as bytes: mkfs is not everywhere.
//!
//! Source: fs/ext2/ext2.h, revision 1. One group of 1 KiB blocks: boot block, super block,
//! group descriptor, two bitmaps, the inodes, and the root directory.

const BLOCK: usize = 1024;
const BLOCKS: u32 = 1024;
const INODES: u32 = 128;
const INODE_BYTES: usize = 128;

const BLOCK_BITMAP: u32 = 3;
const INODE_BITMAP: u32 = 4;
const INODE_TABLE: u32 = 5;
/// Behind the inodes, at the beginning of a page; the last block in use.
const ROOT_BLOCK: u32 =
    (INODE_TABLE + INODES * INODE_BYTES as u32 / BLOCK as u32).next_multiple_of(PAGE_BLOCKS);
/// The page of the image in which the root directory is.
pub(crate) const ROOT_PAGE: u64 = (ROOT_BLOCK / PAGE_BLOCKS) as u64;
/// Blocks in a page.
const PAGE_BLOCKS: u32 = 4;

const ROOT_INODE: u32 = 2;
const FIRST_FREE_INODE: u32 = 11;

const FREE_BLOCKS: u32 = BLOCKS - 1 - ROOT_BLOCK;
const FREE_INODES: u32 = INODES - (FIRST_FREE_INODE - 1);

const DIRECTORY: u16 = 0o040_755;

pub(crate) fn image() -> Vec<u8> {
    let mut image = Image(vec![0; BLOCKS as usize * BLOCK]);
    image.super_block();
    image.group_descriptor();
    // Block 0 is in no bitmap.
    image.bitmap(BLOCK_BITMAP, ROOT_BLOCK, BLOCKS - 1);
    image.bitmap(INODE_BITMAP, FIRST_FREE_INODE - 1, INODES);
    image.root();
    image.0
}

struct Image(Vec<u8>);

impl Image {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, value.to_le_bytes());
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, value.to_le_bytes());
    }

    fn super_block(&mut self) {
        let words = [
            (0, INODES),
            (4, BLOCKS),
            (12, FREE_BLOCKS),
            (16, FREE_INODES),
            // s_first_data_block
            (20, 1),
            // Blocks and fragments per group: as many as a bitmap has bits.
            (32, 8 * BLOCK as u32),
            (36, 8 * BLOCK as u32),
            (40, INODES),
            // s_rev_level
            (76, 1),
            (84, FIRST_FREE_INODE),
            // EXT2_FEATURE_INCOMPAT_FILETYPE
            (96, 2),
        ];
        let halves = [
            // s_max_mnt_count: no limit
            (54, u16::MAX),
            (56, 0xef53),
            // Unmounted cleanly; go on at errors.
            (58, 1),
            (60, 1),
            (88, INODE_BYTES as u16),
        ];
        for (at, value) in words {
            self.put_u32(BLOCK + at, value);
        }
        for (at, value) in halves {
            self.put_u16(BLOCK + at, value);
        }
    }

    fn group_descriptor(&mut self) {
        let at = 2 * BLOCK;
        self.put_u32(at, BLOCK_BITMAP);
        self.put_u32(at + 4, INODE_BITMAP);
        self.put_u32(at + 8, INODE_TABLE);
        self.put_u16(at + 12, FREE_BLOCKS as u16);
        self.put_u16(at + 14, FREE_INODES as u16);
        // Directories in it.
        self.put_u16(at + 16, 1);
    }

    /// The first `used` are in use, and what lies behind `end` does not exist.
    fn bitmap(&mut self, block: u32, used: u32, end: u32) {
        for bit in (0..used).chain(end..8 * BLOCK as u32) {
            self.0[block as usize * BLOCK + bit as usize / 8] |= 1 << (bit % 8);
        }
    }

    fn root(&mut self) {
        let inode = INODE_TABLE as usize * BLOCK + (ROOT_INODE as usize - 1) * INODE_BYTES;
        self.put_u16(inode, DIRECTORY);
        self.put_u32(inode + 4, BLOCK as u32);
        // Two links; two sectors; one block.
        self.put_u16(inode + 26, 2);
        self.put_u32(inode + 28, 2);
        self.put_u32(inode + 40, ROOT_BLOCK);
        let block = ROOT_BLOCK as usize * BLOCK;
        self.entry(block, 12, b".\0");
        self.entry(block + 12, BLOCK - 12, b"..");
    }

    /// An entry for the root; a name of two bytes, the second of which may be none.
    fn entry(&mut self, at: usize, length: usize, name: &[u8; 2]) {
        let name_length = 1 + u8::from(name[1] != 0);
        self.put_u32(at, ROOT_INODE);
        self.put_u16(at + 4, length as u16);
        // EXT2_FT_DIR
        self.put(at + 6, [name_length, 2]);
        self.put(at + 8, *name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_and_used_add_up() {
        let image = image();
        let zeros = |block: u32| {
            let at = block as usize * BLOCK;
            let bytes = &image[at..at + BLOCK];
            bytes.iter().map(|byte| byte.count_zeros()).sum::<u32>()
        };
        assert_eq!(zeros(BLOCK_BITMAP), FREE_BLOCKS);
        assert_eq!(zeros(INODE_BITMAP), FREE_INODES);
        assert_eq!(ROOT_BLOCK, 24);
    }
}
