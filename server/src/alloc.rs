//! jemalloc, because sessions come and go by the thousand: glibc keeps what they used, this gives it back within a second. One arena: the server
//! is not so parallel that several would pay for what each holds back.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Read by jemalloc at its start, under the name that the crate's build gives it.
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static CONFIGURATION: &[u8] = b"dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:1,background_thread:true\0";
