// What a false sender says to a receiver.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "liar.hpp"

namespace ropeway::testing {
namespace {

using namespace protocol;
using step = sender_lie::step;
using way = sender_lie::way;
constexpr errc broken = errc::protocol_error;
constexpr std::uint64_t ring_bytes = lie_bucket * lie_slots;

template <class Change>
void welcome_with(liar& me, Change change) {
  auto w = honest_welcome();
  change(w);
  me.say(w);
}

/// A ring that was changed, with a memory file that would do.
template <class Change>
void offer(liar& me, Change change) {
  auto r = honest_ring(1);
  change(r);
  auto const memory = memory_file(ring_bytes);
  me.say(r, {memory.get()});
}
/// An honest ring, with another descriptor.
void offer_fd(liar& me, unique_fd const& fd) { me.say(honest_ring(), {fd.get()}); }

void send_manifest_bytes(liar& me, std::span<std::byte const> bytes) {
  auto const carrier = memory_file(bytes);
  me.say(manifest_follows{me.update, bytes.size()}, {carrier.get()});
}
template <class Change>
void send_manifest(liar& me, Change change) {
  auto m = loose_manifest::honest();
  change(m);
  send_manifest_bytes(me, m.encode());
}
void send_carrier(liar& me, unique_fd const& fd, std::uint64_t bytes) {
  me.say(manifest_follows{me.update, bytes}, {fd.get()});
}

// ---- where the tensors lie

void send_placement_bytes(liar& me, std::span<std::byte const> bytes) {
  auto const carrier = memory_file(bytes);
  me.say(placement_follows{me.update, bytes.size()}, {carrier.get()});
}
template <class Change>
void send_placement(liar& me, Change change) {
  auto p = honest_placement();
  change(p);
  send_placement_bytes(me, p.encode());
}
template <class Change>
void send_part(liar& me, unique_fd const& fd, Change change) {
  auto part = honest_part(me.update);
  change(part);
  if (fd)
    me.say(part, {fd.get()});
  else
    me.say(part);
}
// ---- digests

/// One for each of the six tensors.
constexpr std::uint64_t lie_table = 6 * digest_bytes;

/// An update whose digests come in this table.
void begin_with_table(liar& me, unique_fd const& fd, std::uint64_t bytes) {
  me.expect<ring_mapped>();
  me.say(digest_table{1, bytes}, {fd.get()});
  auto b = honest_begin();
  b.digests = 1;
  me.update = b.update;
  me.say(b);
  me.expect<need_manifest>();
  send_manifest(me, [](auto&) {});
}
void stream(liar& me) {
  me.expect<accept>();
  for (std::uint32_t i = 0; i < honest_begin().buckets; ++i) {
    me.say(honest_published(me.update, i, i % lie_slots));
    me.expect<released>();
  }
}

/// All of the tensors have been read.
void let_commit(liar& me) {
  me.expect<all_copied>();
  me.say(commit{me.update});
  me.expect<committed>();
}
using plan::placement;

template <class Change>
void publish(liar& me, std::uint32_t bucket, std::uint32_t slot, Change change) {
  auto p = honest_published(me.update, bucket, slot);
  change(p);
  me.say(p);
}
constexpr auto as_it_is = [](auto&) {};

constexpr sender_lie lies[] = {
    // ---- the handshake
    {"closes at once", step::accepted, [](liar& me) { me.hang_up(); }, errc::peer_gone, "closed the connection"},
    {"an empty datagram", step::accepted, [](liar& me) { me.say_bytes({}); }, errc::peer_gone,
     "closed the connection"},
    {"hello back", step::accepted, [](liar& me) { me.say(honest_hello()); }, broken,
     "the sender's first message was hello, not welcome"},
    {"an update before its welcome", step::accepted, [](liar& me) { me.say(honest_begin()); }, broken,
     "the sender's first message was begin"},
    {"a version that was not offered", step::accepted,
     [](liar& me) { welcome_with(me, [](welcome& w) { w.version = version_max + 1; }); }, broken,
     "chose protocol version 2"},
    {"buckets of no bytes", step::accepted,
     [](liar& me) { welcome_with(me, [](welcome& w) { w.bucket_bytes = 0; }); }, broken,
     "the sender's buckets have 0 bytes"},
    {"buckets of more than a TiB", step::accepted,
     [](liar& me) { welcome_with(me, [](welcome& w) { w.bucket_bytes = (std::uint64_t(1) << 40) + 1; }); }, broken,
     "allowed are 1 to 1099511627776"},
    {"a silence limit of 0", step::accepted,
     [](liar& me) { welcome_with(me, [](welcome& w) { w.silence_ms = 0; }); }, broken, "a silence limit of 0 ms"},
    {"a welcome that is cut short", step::accepted,
     [](liar& me) {
       auto const bytes = liar::written(honest_welcome());
       me.say_bytes(std::span(bytes).first(bytes.size() - 1));
     },
     broken, "can't be read"},
    {"a datagram of 200,000 bytes", step::accepted,
     [](liar& me) { me.say_bytes(std::vector<std::byte>(200'000)); }, broken, "sent a message of 200000 bytes where"},
    {"a descriptor with welcome", step::accepted,
     [](liar& me) {
       auto const fd = pipe_end();
       me.say(honest_welcome(), {fd.get()});
     },
     broken, "1 descriptors with a message that has 0"},
    {"turned away in words that move the cursor", step::accepted,
     [](liar& me) {
       me.say(turned_away{2, "\x1b[2Jfull\n"});
     },
     errc::busy, "the sender turned this receiver away:  [2Jfull "},
    {"welcome twice", step::welcomed, [](liar& me) { me.say(honest_welcome()); }, broken,
     "the sender said welcome after its welcome"},
    {"turned away after its welcome", step::welcomed,
     [](liar& me) {
       me.say(turned_away{2, "full"});
     },
     broken, "turned_away after its welcome"},
    {"an unknown message", step::welcomed,
     [](liar& me) {
       std::byte const tag[] = {std::byte(255)};
       me.say_bytes(tag);
     },
     broken, "can't be read"},
    {"what only a receiver says", step::welcomed, [](liar& me) { me.say(accept{1}); }, broken,
     "the sender said accept, which only a receiver says"},
    {"alive without end", step::welcomed,
     [](liar& me) {
       for (int i = 0; i <= 2 * max_idle_messages; ++i) me.say(alive{0});
     },
     broken, "the sender said alive and no end"},
    {"updates without end, each taken back", step::welcomed,
     [](liar& me) {
       me.hear_meanwhile();
       for (std::uint64_t i = 1; i <= 2 * max_idle_messages; ++i) {
         me.say(honest_begin(i));
         me.say(abort_update{i, 6, "no"});
       }
     },
     broken, "the sender said begin and no end"},
    {"words after goodbye", step::welcomed,
     [](liar& me) {
       me.say(goodbye{23, "\x07you"});
       me.say(honest_begin());
     },
     errc::peer_aborted, " you"},

    // ---- rings
    {"a ring without its descriptor", step::welcomed, [](liar& me) { me.say(honest_ring()); }, broken,
     "0 descriptors with a message that has 1"},
    {"a ring with two descriptors", step::welcomed,
     [](liar& me) {
       auto const one = memory_file(ring_bytes), two = memory_file(ring_bytes);
       me.say(honest_ring(), {one.get(), two.get()});
     },
     broken, "2 descriptors where 1 are allowed"},
    {"a ring of no slots", step::welcomed, [](liar& me) { offer(me, [](ring& r) { r.slots = 0; }); }, broken,
     "has 0 slots, allowed are 1 to 64"},
    {"a ring of 65 slots", step::welcomed, [](liar& me) { offer(me, [](ring& r) { r.slots = 65; }); }, broken,
     "has 65 slots, allowed are 1 to 64"},
    {"slots smaller than a bucket", step::welcomed,
     [](liar& me) { offer(me, [](ring& r) { r.slot_bytes = lie_bucket - 1; }); }, broken, "slots of 4095 bytes"},
    {"slots whose sizes overflow", step::welcomed,
     [](liar& me) { offer(me, [](ring& r) { r.slot_bytes = ~std::uint64_t(0); }); }, broken,
     "slots of 18446744073709551615 bytes"},
    {"a ring on neither host nor device", step::welcomed, [](liar& me) { offer(me, [](ring& r) { r.on_device = 2; }); },
     broken, "neither host memory nor a device's"},
    {"a host ring with a device's name", step::welcomed, [](liar& me) { offer(me, [](ring& r) { r.origin[0] = 1; }); },
     broken, "neither host memory nor a device's"},
    {"a ring twice", step::offered,
     [](liar& me) {
       auto const memory = memory_file(ring_bytes);
       me.say(honest_ring(), {memory.get()});
     },
     broken, "the sender offers ring 0 twice"},
    {"66 rings", step::offered,
     [](liar& me) {
       auto const memory = memory_file(ring_bytes);
       for (std::uint32_t id = 1; id <= 65; ++id) me.say(honest_ring(id), {memory.get()});
     },
     broken, "more than 65 rings"},
    {"a ring on a device, for a receiver on the host", step::welcomed,
     [](liar& me) {
       auto r = honest_ring();
       r.on_device = 1;
       r.origin[0] = 1;
       auto const memory = memory_file(ring_bytes);
       me.say(r, {memory.get()});
     },
     errc::not_reachable, "can't map a CUDA device, GPU-01000000-0000-0000-0000-000000000000", way::refused_ring},
    {"a pipe as ring", step::welcomed, [](liar& me) { offer_fd(me, pipe_end()); }, errc::bad_region,
     "it is no memory file", way::refused_ring},
    {"a socket as ring", step::welcomed, [](liar& me) { me.say(honest_ring(), {me.socket()}); }, errc::bad_region,
     "it is no memory file", way::refused_ring},
    {"a regular file as ring", step::welcomed,
     [](liar& me) { offer_fd(me, open_file("/proc/self/exe", O_RDONLY)); }, errc::bad_region,
     "can't import a region: it", way::refused_ring},
    {"a directory as ring", step::welcomed, [](liar& me) { offer_fd(me, open_file("/", O_RDONLY | O_DIRECTORY)); },
     errc::bad_region, "it is no memory file", way::refused_ring},
    {"an eventfd as ring", step::welcomed, [](liar& me) { offer_fd(me, event_counter()); }, errc::bad_region,
     "it is no memory file", way::refused_ring},
    {"/dev/zero as ring", step::welcomed, [](liar& me) { offer_fd(me, open_file("/dev/zero", O_RDWR)); },
     errc::bad_region, "it is no memory file", way::refused_ring},
    {"a descriptor that only names the ring", step::welcomed,
     [](liar& me) { offer_fd(me, reopened(memory_file(ring_bytes).get(), O_PATH)); }, errc::bad_region,
     "can't import a region", way::refused_ring},
    {"a ring that can't be read", step::welcomed,
     [](liar& me) {
       auto const memory = memory_file(ring_bytes, F_SEAL_SHRINK | F_SEAL_GROW);
       auto const write_only = reopened(memory.get(), O_WRONLY);
       if (::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) != 0) throw std::runtime_error("seal");
       offer_fd(me, write_only);
     },
     errc::bad_region, "can't be mapped for reading", way::refused_ring},
    {"a ring that is not sealed", step::welcomed, [](liar& me) { offer_fd(me, memory_file(ring_bytes, 0)); },
     errc::bad_region, "its size is not sealed", way::refused_ring},
    {"a ring that may shrink", step::welcomed,
     [](liar& me) { offer_fd(me, memory_file(ring_bytes, F_SEAL_GROW | F_SEAL_FUTURE_WRITE)); }, errc::bad_region,
     "its size is not sealed", way::refused_ring},
    {"a ring that may grow", step::welcomed,
     [](liar& me) { offer_fd(me, memory_file(ring_bytes, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE)); }, errc::bad_region,
     "its size is not sealed", way::refused_ring},
    {"a ring that anybody may write", step::welcomed,
     [](liar& me) { offer_fd(me, memory_file(ring_bytes, F_SEAL_SHRINK | F_SEAL_GROW)); }, errc::bad_region,
     "writing is not sealed", way::refused_ring},
    {"a ring shorter than announced", step::welcomed, [](liar& me) { offer_fd(me, memory_file(ring_bytes - 1)); },
     errc::bad_region, "it has 8191 bytes where 8192 were announced", way::refused_ring},
    {"a ring longer than announced", step::welcomed, [](liar& me) { offer_fd(me, memory_file(ring_bytes + 1)); },
     errc::bad_region, "it has 8193 bytes where 8192 were announced", way::refused_ring},
    {"a ring of no bytes", step::welcomed, [](liar& me) { offer_fd(me, memory_file(0)); }, errc::bad_region,
     "it has 0 bytes where 8192 were announced", way::refused_ring},
    {"a ring that nobody has paid for", step::welcomed,
     [](liar& me) { offer_fd(me, memory_file(ring_bytes, all_seals, false)); }, errc::bad_region,
     "are not all there", way::refused_ring},
    {"a ring of 64 TiB that is not there", step::welcomed,
     [](liar& me) {
       auto r = honest_ring();
       r.slots = 64;
       r.slot_bytes = std::uint64_t(1) << 40;
       auto const memory = memory_file(ring_bytes);
       me.say(r, {memory.get()});
     },
     errc::bad_region, "where 70368744177664 were announced", way::refused_ring},
    {"a ring that shrinks once it is said", step::welcomed,
     [](liar& me) {
       auto const memory = memory_file(ring_bytes, 0);
       me.say(honest_ring(), {memory.get()});
       if (::ftruncate(memory.get(), 0) != 0) throw std::runtime_error("ftruncate");
     },
     errc::bad_region, "can't import a region: it", way::refused_ring},

    // ---- announcements
    {"a bucket before any update", step::welcomed,
     [](liar& me) {
       me.update = 1;
       publish(me, 0, 0, as_it_is);
     },
     broken, "published for update 1, which is not running"},
    {"a commit before any update", step::welcomed, [](liar& me) { me.say(commit{1}); }, broken,
     "commit for update 1, which is not running"},
    {"an abort of what never was", step::welcomed,
     [](liar& me) {
       me.say(abort_update{1, 6, "no"});
     },
     broken, "abort_update for update 1, the newest is 0"},
    {"an update with the number 0", step::welcomed, [](liar& me) { me.say(honest_begin(0)); }, broken,
     "begin for update 0 after update 0"},
    {"read what is in no segment", step::begun, [](liar& me) { me.say(read_mapped{me.update}); }, broken,
     "read_mapped for update 1 twice, or when it can't be"},
    {"begin twice", step::begun, [](liar& me) { me.say(honest_begin(2)); }, broken,
     "begin for update 2 while update 1 runs"},
    {"a bucket before the manifest", step::asked, [](liar& me) { publish(me, 0, 0, as_it_is); }, broken,
     "the update is not accepted yet"},
    {"a manifest that nobody asked for", step::loading, [](liar& me) { send_manifest(me, as_it_is); }, broken,
     "that was not asked for"},

    // ---- manifests
    {"a manifest without its descriptor", step::asked, [](liar& me) { me.say(manifest_follows{1, 100}); }, broken,
     "0 descriptors with a message that has 1"},
    {"a manifest of no bytes", step::asked, [](liar& me) { send_carrier(me, memory_file(10), 0); }, broken,
     "has 0 bytes, allowed are 1 to"},
    {"a manifest of more than may be", step::asked,
     [](liar& me) { send_carrier(me, memory_file(10), (std::uint64_t(1) << 30) + 1); }, broken,
     "allowed are 1 to 1073741824"},
    {"a manifest in a pipe", step::asked, [](liar& me) { send_carrier(me, pipe_end(), 100); }, errc::bad_region,
     "it is no memory file"},
    {"a manifest that is not sealed", step::asked, [](liar& me) { send_carrier(me, memory_file(100, 0), 100); },
     errc::bad_region, "its size is not sealed"},
    {"a manifest shorter than announced", step::asked, [](liar& me) { send_carrier(me, memory_file(99), 100); },
     errc::bad_region, "it has 99 bytes where 100 were announced"},
    {"a manifest that nobody has paid for", step::asked,
     [](liar& me) { send_carrier(me, memory_file(1 << 20, all_seals, false), 1 << 20); }, errc::bad_region,
     "are not all there"},
    {"a manifest of zeros", step::asked, [](liar& me) { send_carrier(me, memory_file(100), 100); }, broken,
     "manifest: "},
    {"a manifest of another layout", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.tensors[0].name = "other"; }); }, broken,
     "has not the layout"},
    {"a manifest with bytes behind it", step::asked,
     [](liar& me) {
       auto bytes = loose_manifest::honest().encode();
       bytes.push_back({});
       send_manifest_bytes(me, bytes);
     },
     broken, "manifest: "},
    {"more tensors than bytes", step::asked,
     [](liar& me) {
       auto bytes = loose_manifest::honest().encode();
       for (std::size_t i = 8; i < 12; ++i) bytes[i] = std::byte(0xff);
       send_manifest_bytes(me, bytes);
     },
     broken, "manifest: "},
    {"a name that is no UTF-8", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.tensors[1].name = "a\xc0\x80"; }); }, broken,
     "is not UTF-8"},
    {"a tensor without a name", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.tensors[1].name.clear(); }); }, broken,
     "every tensor needs a name"},
    {"a name of 70,000 bytes", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.tensors[1].name.assign(70'000, 'n'); }); }, broken,
     "manifest: "},
    {"a name twice", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.tensors[1].name = m.tensors[0].name; }); }, broken,
     "names must differ"},
    {"an unknown dtype", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.tensors[0].type = 99; }); }, broken, "manifest: "},
    {"nine dimensions", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.tensors[0].dims.assign(9, 1); }); }, broken,
     "too many dimensions"},
    {"dimensions that overflow", step::asked,
     [](liar& me) {
       send_manifest(me, [](loose_manifest& m) { m.tensors[0].dims.assign(2, std::uint64_t(1) << 40); });
     },
     broken, "larger than any memory"},
    {"pieces that overlap in the bucket", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.pieces[1].bucket_offset = 0; }); }, broken,
     "overlaps the piece before it"},
    {"pieces that leave a gap in the tensor", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.pieces[0].tensor_offset = 256; }); }, broken,
     "leaves a gap or overlaps"},
    {"a tensor without its piece", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.pieces.pop_back(); }); }, broken,
     "no piece for all of"},
    {"a piece too many", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.pieces.push_back(m.pieces.back()); }); }, broken,
     "belongs to no tensor"},
    {"a piece longer than its tensor", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.pieces[0].bytes += 1; }); }, broken,
     "has a wrong size"},
    {"a piece beyond its bucket", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.pieces[0].bucket_offset = lie_bucket; }); }, broken,
     "is not within its bucket"},
    {"an offset that overflows", step::asked,
     [](liar& me) {
       send_manifest(me, [](loose_manifest& m) { m.pieces[0].bucket_offset = ~std::uint64_t(255); });
     },
     broken, "is not within its bucket"},
    {"a bucket left out", step::asked,
     [](liar& me) { send_manifest(me, [](loose_manifest& m) { m.pieces[0].bucket = 1; }); }, broken,
     "is not in the order of the buckets"},

    // ---- buckets
    {"the second bucket first", step::loading, [](liar& me) { publish(me, 1, 0, as_it_is); }, broken,
     "bucket 0 is next"},
    {"a bucket in a ring that is not there", step::loading,
     [](liar& me) { publish(me, 0, 0, [](published& p) { p.ring = 7; }); }, broken, "ring 7 is not mapped"},
    {"a bucket in a slot that is not there", step::loading, [](liar& me) { publish(me, 0, lie_slots, as_it_is); },
     broken, "ring 0 has 2 slots, not a slot 2"},
    {"a bucket of another size", step::loading,
     [](liar& me) { publish(me, 0, 0, [](published& p) { p.bytes += 1; }); }, broken, "by the manifest"},
    {"a bucket of another update", step::loading,
     [](liar& me) { publish(me, 0, 0, [](published& p) { p.update = 9; }); }, broken, "which is not running"},
    {"a seq of 0", step::loading, [](liar& me) { publish(me, 0, 0, [](published& p) { p.seq = 0; }); }, broken,
     "seq does not grow beyond 0"},
    {"a seq again", step::streaming, [](liar& me) { publish(me, 1, 1, [](published& p) { p.seq = 1; }); }, broken,
     "seq does not grow beyond 1"},
    {"a bucket again", step::streaming, [](liar& me) { publish(me, 0, 1, [](published& p) { p.seq = 2; }); }, broken,
     "bucket 1 is next"},
    {"a bucket without number", step::loading, [](liar& me) { publish(me, 0, 0, [](published& p) { p.bucket = ~0u; }); },
     broken, "bucket 0 is next"},
    {"more buckets than there are", step::copied,
     [](liar& me) {
       publish(me, 2, 0, [](published& p) {
         p.bucket = 3;
         p.seq = 4;
       });
     },
     broken, "all 3 buckets were published already"},
    {"commit before any bucket", step::loading, [](liar& me) { me.say(commit{me.update}); }, broken,
     "commit for update 1 before all_copied"},
    {"commit after the first bucket", step::streaming, [](liar& me) { me.say(commit{me.update}); }, broken,
     "commit for update 1 before all_copied"},
    {"gone after the first bucket", step::streaming, [](liar& me) { me.hang_up(); }, errc::peer_gone, ""},
    {"an empty datagram after the first bucket", step::streaming, [](liar& me) { me.say_bytes({}); }, errc::peer_gone,
     "closed the connection"},
    {"a commit of another update", step::copied, [](liar& me) { me.say(commit{me.update + 1}); }, broken,
     "which is not running"},
    {"commit twice", step::committed, [](liar& me) { me.say(commit{me.update}); }, broken, "which is not running"},
    {"released, after the commit", step::committed,
     [](liar& me) {
       me.say(released{me.update, 1});
     },
     broken, "which only a receiver says"},
    {"the same update again", step::committed, [](liar& me) { me.say(honest_begin()); }, broken,
     "begin for update 1 after update 1"},

    // ---- digests
    {"a table of digests without its descriptor", step::offered, [](liar& me) { me.say(digest_table{1, lie_table}); },
     broken, "0 descriptors with a message that has 1"},
    {"a table of half a digest", step::offered,
     [](liar& me) {
       auto const table = memory_file(8);
       me.say(digest_table{1, 8}, {table.get()});
     },
     broken, "table 1 of digests has 8 bytes"},
    {"an update whose table was never given", step::offered,
     [](liar& me) {
       auto b = honest_begin();
       b.digests = 1;
       me.say(b);
     },
     broken, "with digests in table 1, which it has not given"},
    {"a table in the middle of an update", step::loading,
     [](liar& me) {
       auto const table = memory_file(lie_table);
       me.say(digest_table{1, lie_table}, {table.get()});
     },
     broken, "gave digests while update 1 runs"},
    {"digests that there are none of", step::loading, [](liar& me) { me.say(digests_ready{me.update}); }, broken,
     "digests_ready for update 1 twice, or without having any"},
    {"digests in a pipe", step::offered, [](liar& me) { begin_with_table(me, pipe_end(), lie_table); },
     errc::bad_region, "it is no memory file", way::refused},
    {"digests that are not sealed", step::offered,
     [](liar& me) { begin_with_table(me, memory_file(lie_table, 0), lie_table); }, errc::bad_region,
     "its size is not sealed", way::refused},
    {"a table shorter than announced", step::offered,
     [](liar& me) { begin_with_table(me, memory_file(lie_table - 1), lie_table); }, errc::bad_region,
     "it has 95 bytes where 96 were announced", way::refused},
    {"digests of more chunks than there are", step::offered,
     [](liar& me) { begin_with_table(me, memory_file(lie_table + 16), lie_table + 16); }, broken,
     "has 112 bytes, not the 96 of its tensors' chunks", way::refused},
    {"digests of other bytes", step::offered,
     [](liar& me) {
       // The bytes that it streams are zeros, and so would be their digests.
       begin_with_table(me, memory_file(std::vector<std::byte>(lie_table, std::byte{1})), lie_table);
       stream(me);
       me.say(digests_ready{me.update});
     },
     errc::digest_mismatch, "is not what the sender has", way::given_up, true},
    {"commit before the digests", step::offered,
     [](liar& me) {
       begin_with_table(me, memory_file(lie_table), lie_table);
       stream(me);
       me.say(commit{me.update});
     },
     broken, "commit for update 1 before all_copied", way::ends, true},

    // ---- placements
    {"a placement without its descriptor", step::placing, [](liar& me) { me.say(placement_follows{1, 100}); }, broken,
     "0 descriptors with a message that has 1"},
    {"a placement of no bytes", step::placing,
     [](liar& me) {
       auto const carrier = memory_file(10);
       me.say(placement_follows{me.update, 0}, {carrier.get()});
     },
     broken, "has 0 bytes, allowed are 1 to"},
    {"a placement of more than may be", step::placing,
     [](liar& me) {
       auto const carrier = memory_file(10);
       me.say(placement_follows{me.update, (std::uint64_t(1) << 30) + 1}, {carrier.get()});
     },
     broken, "allowed are 1 to 1073741824"},
    {"a placement in a pipe", step::placing,
     [](liar& me) {
       auto const pipe = pipe_end();
       me.say(placement_follows{me.update, 100}, {pipe.get()});
     },
     errc::bad_region, "it is no memory file"},
    {"a placement that is not sealed", step::placing,
     [](liar& me) {
       auto const carrier = memory_file(100, 0);
       me.say(placement_follows{me.update, 100}, {carrier.get()});
     },
     errc::bad_region, "its size is not sealed"},
    {"a placement shorter than announced", step::placing,
     [](liar& me) {
       auto const carrier = memory_file(99);
       me.say(placement_follows{me.update, 100}, {carrier.get()});
     },
     errc::bad_region, "it has 99 bytes where 100 were announced"},
    {"a placement of zeros", step::placing,
     [](liar& me) { send_placement_bytes(me, std::vector<std::byte>(100)); }, broken, "placement: "},
    {"a placement with bytes behind it", step::placing,
     [](liar& me) {
       auto bytes = honest_placement().encode();
       bytes.push_back({});
       send_placement_bytes(me, bytes);
     },
     broken, "placement: "},
    {"a placement of too few tensors", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.tensors.pop_back(); }); }, broken,
     "5 tensors, the manifest has 6"},
    {"a tensor in no segment", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.tensors[0].segment = 1; }); }, broken,
     "there is no such segment"},
    {"a tensor beyond its segment", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.tensors[5].offset = lie_segment_bytes - 1999; }); },
     broken, "is not within its segment"},
    {"a tensor at the end of all numbers", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.tensors[0].offset = ~std::uint64_t(1999); }); }, broken,
     "is not within its segment"},
    {"strides that leave the segment", step::placing,
     [](liar& me) {
       send_placement(me, [](placement& p) {
         p.tensors[0].strided = true;
         p.tensors[0].strides = {-1};
       });
     },
     broken, "is not within its segment"},
    {"strides beyond any memory", step::placing,
     [](liar& me) {
       send_placement(me, [](placement& p) {
         p.tensors[0].strided = true;
         p.tensors[0].strides = {INT64_MIN};
       });
     },
     broken, "is larger than any memory"},
    {"a dtype that can't become the one announced", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.tensors[0].type = dtype::i64; }); }, broken,
     "can't be converted to what was announced"},
    {"a segment twice", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.segments.push_back(p.segments[0]); }); }, broken,
     "segment 5 twice"},
    {"a segment of 2^60 bytes", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.segments[0].bytes = std::uint64_t(1) << 60; }); }, broken,
     "an impossible size"},
    {"a segment without parts", step::placing,
     [](liar& me) { send_placement(me, [](placement& p) { p.segments[0].parts = 0; }); }, broken,
     "an impossible number of parts"},
    {"a part before the placement", step::placing,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes), as_it_is); }, broken, "which was not asked for"},
    {"read, and read, before it accepts", step::placing,
     [](liar& me) {
       me.say(read_mapped{me.update});
       me.say(read_mapped{me.update});
     },
     broken, "read_mapped for update 1 twice"},
    {"a segment in two parts that the host has none of", step::placing,
     [](liar& me) {
       send_placement(me, [](placement& p) { p.segments[0].parts = 2; });
       me.expect<need_segment>();
       for (std::uint32_t i = 0; i < 2; ++i)
         send_part(me, memory_file(lie_segment_bytes), [i](segment_part& part) { part.part = i; });
     },
     errc::not_reachable, "", way::not_mapped},

    // ---- segments
    {"the placement twice", step::mapping, [](liar& me) { send_placement(me, as_it_is); }, broken,
     "the sender sent a placement for update 1 that was not asked for"},
    {"a part of another segment", step::mapping,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes), [](segment_part& p) { p.segment = 6; }); }, broken,
     "which was not asked for"},
    {"a part that there is not", step::mapping,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes), [](segment_part& p) { p.part = 1; }); }, broken,
     "which was not asked for"},
    {"the part twice", step::mapping,
     [](liar& me) {
       for (int i = 0; i < 2; ++i) send_part(me, memory_file(lie_segment_bytes), as_it_is);
     },
     broken, "which was not asked for"},
    {"a part without its descriptor", step::mapping, [](liar& me) { send_part(me, {}, as_it_is); }, broken,
     "0 descriptors with a message that has 1"},
    {"a part with two descriptors", step::mapping,
     [](liar& me) {
       auto const memory = memory_file(lie_segment_bytes);
       me.say(honest_part(me.update), {memory.get(), memory.get()});
     },
     broken, "2 descriptors where 1 are allowed"},
    {"a descriptor with a part that has none", step::mapping,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes), [](segment_part& p) { p.kind = 0; }); }, broken,
     "1 descriptors with a message that has 0"},
    {"a part of no kind", step::mapping, [](liar& me) { send_part(me, {}, [](segment_part& p) { p.kind = 77; }); },
     errc::bad_region, "one part of its own size", way::not_mapped},
    {"a part in a device's memory", step::mapping,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes), [](segment_part& p) { p.kind = 2; }); },
     errc::bad_region, "one part of its own size", way::not_mapped},
    {"a part of another size than its segment", step::mapping,
     [](liar& me) { send_part(me, memory_file(4096), [](segment_part& p) { p.bytes = 4096; }); }, errc::bad_region,
     "one part of its own size", way::not_mapped},
    {"a segment shorter than announced", step::mapping, [](liar& me) { send_part(me, memory_file(4096), as_it_is); },
     errc::bad_region, "it has 4096 bytes where 12288 were announced", way::not_mapped},
    {"a segment that may shrink", step::mapping,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes, F_SEAL_GROW | F_SEAL_FUTURE_WRITE), as_it_is); },
     errc::bad_region, "its size is not sealed", way::not_mapped},
    {"a segment that shrinks once it is said", step::mapping,
     [](liar& me) {
       auto const memory = memory_file(lie_segment_bytes, 0);
       send_part(me, memory, as_it_is);
       if (::ftruncate(memory.get(), 0) != 0) throw std::runtime_error("ftruncate");
     },
     errc::bad_region, "can't import a region: it", way::not_mapped},
    {"a segment in a pipe", step::mapping, [](liar& me) { send_part(me, pipe_end(), as_it_is); }, errc::bad_region,
     "it is no memory file", way::not_mapped},
    {"a segment that nobody has paid for", step::mapping,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes, all_seals, false), as_it_is); }, errc::bad_region,
     "are not all there", way::not_mapped},
    {"a segment that can't be exported", step::mapping,
     [](liar& me) {
       send_part(me, {}, [](segment_part& p) {
         p.code = static_cast<std::uint16_t>(errc::not_reachable);
         p.text = "\x1b[2Jfreed\n";
       });
     },
     errc::not_reachable, "freed", way::not_mapped},

    // ---- reading
    {"read twice", step::reading,
     [](liar& me) {
       me.say(read_mapped{me.update});
       me.say(read_mapped{me.update});
     },
     broken, "read_mapped for update 1 twice"},
    {"read in a way that there is not", step::reading, [](liar& me) { me.say(read_mapped{me.update, 2}); }, broken,
     "read_mapped for update 1 with 2"},
    // As a connection is that ends just now: for who writes first, and only then for who reads.
    {"all copied is not heard any more, of what it has left to the receiver", step::reading,
     [](liar& me) {
       (void)::shutdown(me.socket(), SHUT_RD);
       me.say(read_mapped{me.update, 1});
       pollfd until_it_leaves{me.socket(), 0, 0};
       (void)::poll(&until_it_leaves, 1, 5000);
       me.hang_up();
     },
     errc::peer_gone, "has closed the connection", way::ends, false, true},
    {"commit of what it has left to the receiver", step::reading,
     [](liar& me) {
       me.say(read_mapped{me.update, 1});
       me.expect<all_copied>();
       me.say(commit{me.update});
       me.hear_meanwhile();
     },
     broken, "commit for update 1"},
    {"a bucket for who reads the tensors", step::reading, [](liar& me) { publish(me, 0, 0, as_it_is); }, broken,
     "all 0 buckets were published already"},
    {"commit before it was told to read", step::reading, [](liar& me) { me.say(commit{me.update}); }, broken,
     "commit for update 1 before all_copied"},
    {"a part after it has accepted", step::reading,
     [](liar& me) { send_part(me, memory_file(lie_segment_bytes), as_it_is); }, broken, "which was not asked for"},
    {"unmap without end", step::reading,
     [](liar& me) {
       me.hear_meanwhile();
       for (int i = 0; i <= 2 * max_idle_messages; ++i) me.say(unmap{{lie_segment}});
     },
     broken, "messages in a row that move nothing"},
    {"unmap nothing", step::reading, [](liar& me) { me.say(unmap{}); }, broken, "unmap for no segment"},
    {"everything wanted back in the middle of a read", step::reading,
     [](liar& me) {
       me.say(read_mapped{me.update});
       me.say(unmap{{1, lie_segment, 99}});
       let_commit(me);
       me.hang_up();
     },
     errc::peer_gone, ""},
    {"everything wanted back before it is read", step::reading,
     [](liar& me) {
       me.say(unmap{{lie_segment}});
       me.say(read_mapped{me.update});
       let_commit(me);
       me.expect<unmapped>(); // not while it may still be read
       me.hang_up();
     },
     errc::peer_gone, ""},
    {"gone in the middle of a read", step::reading,
     [](liar& me) {
       me.say(read_mapped{me.update});
       me.hang_up();
     },
     errc::peer_gone, ""},
    {"a segment that has grown since it was mapped", step::reading,
     [](liar& me) {
       me.say(read_mapped{me.update});
       let_commit(me);
       me.update = 2;
       me.say(honest_mapped_begin(2, 10));
       me.expect<need_placement>();
       send_placement(me, [](placement& p) {
         p.segments[0].bytes = std::uint64_t(1) << 40;
         p.tensors[3].offset = std::uint64_t(1) << 39;
       });
     },
     errc::bad_region, "segment 5 has 12288 bytes, not the 1099511627776", way::not_mapped},
};

} // namespace

std::span<sender_lie const> sender_lies() { return lies; }

namespace {

void walk(sender_lie const& what, liar& me) {
  using at = sender_lie::step;
  auto const lie_at = [&](at where) {
    if (what.at != where) return false;
    what.lie(me);
    return true;
  };
  me.expect<hello>();
  if (lie_at(at::accepted)) return;
  me.say(honest_welcome());
  if (lie_at(at::welcomed)) return;
  auto const memory = memory_file(lie_bucket * lie_slots);
  me.say(honest_ring(), {memory.get()});
  if (lie_at(at::offered)) return;
  me.expect<ring_mapped>();
  bool const maps = what.at >= at::placing;
  auto const b = maps ? honest_mapped_begin() : honest_begin();
  me.update = b.update;
  me.say(b);
  if (lie_at(at::begun)) return;
  me.expect<need_manifest>();
  if (lie_at(at::asked)) return;
  auto const text = honest_manifest().encode();
  auto const carrier = memory_file(text);
  me.say(manifest_follows{b.update, text.size()}, {carrier.get()});
  if (maps) {
    me.expect<need_placement>();
    if (lie_at(at::placing)) return;
    send_placement(me, as_it_is);
    me.expect<need_segment>();
    if (lie_at(at::mapping)) return;
    send_part(me, memory_file(lie_segment_bytes), as_it_is);
    if (me.expect<accept>().mapped != 1) throw std::runtime_error("it does not map");
    return what.lie(me);
  }
  me.expect<accept>();
  if (lie_at(at::loading)) return;
  for (std::uint32_t i = 0; i < b.buckets; ++i) {
    me.say(honest_published(b.update, i, i % lie_slots));
    if (i == 0 && lie_at(at::streaming)) return;
    me.seq = me.expect<released>().seq;
  }
  me.expect<all_copied>();
  if (lie_at(at::copied)) return;
  me.say(commit{b.update});
  me.expect<committed>();
  what.lie(me);
}

} // namespace

std::string tell(sender_lie const& what, false_door& door) {
  try {
    auto me = door.accept();
    walk(what, me);
    if (me.socket() < 0) return {};
    if (what.how == sender_lie::way::refused_ring) {
      auto const no = me.expect<ring_refused>();
      auto wrong = judged({static_cast<errc>(no.code), no.text}, what.code, what.words);
      me.say(goodbye{0, "enough"});
      return wrong;
    }
    if (what.how == sender_lie::way::refused || what.how == sender_lie::way::given_up) {
      auto const told_in = [&](auto const& no) {
        return judged({static_cast<errc>(no.code), no.text}, what.code, what.words);
      };
      auto wrong = what.how == sender_lie::way::refused ? told_in(me.expect<refuse>())
                                                        : told_in(me.expect<abort_update>());
      me.say(goodbye{0, "enough"});
      return wrong;
    }
    if (what.how == sender_lie::way::not_mapped) {
      auto const yes = me.expect<accept>();
      auto wrong = judged({static_cast<errc>(yes.code), yes.text}, what.code, what.words);
      me.say(goodbye{0, "enough"});
      return yes.mapped == 0 ? wrong : "it maps";
    }
    me.hear_out();
    return what.code == broken ? judged(me.last(), what.code, what.words) : "";
  } catch (std::exception const& error) { return error.what(); }
}

} // namespace ropeway::testing
