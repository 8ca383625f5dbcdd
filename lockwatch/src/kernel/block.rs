//! Where block devices lie behind the structures that their waiters have at hand.
//!
//! Sources: include/linux/blk_types.h, blkdev.h, blk-mq.h and block/blk-mq.h of 5.10, 6.1,
//! 6.12, 6.18 and 7.3.

use super::btf::Btf;

/// Offsets of the members that lead from what is on a stack to a `gendisk`.
#[derive(Clone, Copy, Debug)]
pub struct BlockLayout {
    /// How a queue leads to its disk.
    pub queue_disk: QueueDisk,
    /// `gendisk.queue`
    pub disk_queue: u64,
    /// `gendisk.disk_name`
    pub disk_name: u64,
    /// Bytes of it.
    pub disk_name_len: usize,
    /// `block_device.bd_disk`
    pub bdev_disk: u64,
    /// How a bio leads to its disk.
    pub bio: BioDisk,
    /// `request.q`
    pub request_queue: u64,
    /// `buffer_head.b_bdev`
    pub buffer_bdev: u64,
    /// `folio.mapping` (5.16+), else `page.mapping`
    pub page_mapping: u64,
    /// `address_space.host`
    pub mapping_host: u64,
    /// `super_block.s_bdev`
    pub super_bdev: u64,
    /// What a task has on its stack while it waits for a free request.
    pub allocation: AllocationLayout,
}

/// How a `request_queue` leads to its `gendisk`.
#[derive(Clone, Copy, Debug)]
pub enum QueueDisk {
    /// `request_queue.disk` (5.15+).
    Pointer(u64),
    /// `request_queue.kobj.parent` points into the disk.
    Parent {
        /// `request_queue.kobj.parent`
        parent: u64,
        /// `gendisk.part0.__dev.kobj`
        in_disk: u64,
    },
}

/// How a `bio` leads to its `gendisk`.
#[derive(Clone, Copy, Debug)]
pub enum BioDisk {
    /// `bio.bi_bdev` (5.12+).
    Bdev(u64),
    /// `bio.bi_disk`
    Disk(u64),
}

/// `struct blk_mq_alloc_data`.
#[derive(Clone, Copy, Debug)]
pub struct AllocationLayout {
    /// `q`
    pub queue: usize,
    /// `hctx`
    pub hctx: usize,
    /// `blk_mq_hw_ctx.queue`
    pub hctx_queue: u64,
}

impl BlockLayout {
    /// `None` where this kernel spells something in another way: devices are then not named.
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        let at = |path: &str| btf.member(path).map(|member| u64::from(member.offset));
        let name = btf.member("gendisk.disk_name")?;
        let queue_disk = match at("request_queue.disk") {
            Some(disk) => QueueDisk::Pointer(disk),
            None => QueueDisk::Parent {
                parent: at("request_queue.kobj.parent")?,
                in_disk: at("gendisk.part0.__dev.kobj")?,
            },
        };
        let bio = match at("bio.bi_bdev") {
            Some(bdev) => BioDisk::Bdev(bdev),
            None => BioDisk::Disk(at("bio.bi_disk")?),
        };
        Some(Self {
            queue_disk,
            disk_queue: at("gendisk.queue")?,
            disk_name: name.offset.into(),
            disk_name_len: name.size as usize,
            bdev_disk: at("block_device.bd_disk")?,
            bio,
            request_queue: at("request.q")?,
            buffer_bdev: at("buffer_head.b_bdev")?,
            page_mapping: at("folio.mapping").or_else(|| at("page.mapping"))?,
            mapping_host: at("address_space.host")?,
            super_bdev: at("super_block.s_bdev")?,
            allocation: AllocationLayout {
                queue: at("blk_mq_alloc_data.q")? as usize,
                hctx: at("blk_mq_alloc_data.hctx")? as usize,
                hctx_queue: at("blk_mq_hw_ctx.queue")?,
            },
        })
    }
}

/// The file in which the kernel says how many requests of a disk are in flight: reads and
/// writes, of all its partitions. It asks no driver (`part_inflight_show`, block/genhd.c).
pub fn in_flight_file(disk: &str) -> String {
    in_sysfs(disk, "inflight")
}

/// The file that says whether the kernel counts them: without statistics it shows 0 for a
/// busy disk, too (`queue_iostats_show`, block/blk-sysfs.c).
pub fn is_counted_file(disk: &str) -> String {
    in_sysfs(disk, "queue/iostats")
}

fn in_sysfs(disk: &str, file: &str) -> String {
    // As sysfs spells the name (`kobject_set_name_vargs`).
    format!("/sys/block/{}/{file}", disk.replace('/', "!"))
}
