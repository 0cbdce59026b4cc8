// What a false receiver says to a sender.
#include <fcntl.h>

#include "liar.hpp"
#include "protocol/pace.hpp"

namespace ropeway::testing {
namespace {

using namespace protocol;
using step = receiver_lie::step;
constexpr errc broken = errc::protocol_error;

/// A hello that was changed.
template <class Change>
void introduce(liar& me, Change change) {
  auto hi = honest_hello();
  change(hi);
  me.say(hi);
}

accept accept_as(liar& me, std::uint8_t mapped) {
  accept a(me.update);
  a.mapped = mapped;
  return a;
}

void cut_short(liar& me, protocol::message const& what) {
  auto const bytes = liar::written(what);
  me.say_bytes(std::span(bytes).first(bytes.size() - 1));
}

constexpr receiver_lie lies[] = {
    // ---- before anybody knows it
    {"nothing at all, and gone again", step::connected, [](liar& me) { me.hang_up(); }, errc::ok, ""},
    {"a first message that is not hello", step::connected, [](liar& me) { me.say(accept{1}); }, broken,
     "its first message was accept, not hello"},
    {"what only a sender says first", step::connected, [](liar& me) { me.say(honest_welcome()); }, broken,
     "its first message was welcome"},
    {"a wrong magic number", step::connected,
     [](liar& me) { introduce(me, [](hello& hi) { hi.magic ^= 1; }); }, broken,
     "does not start with ropeway's magic number"},
    {"another schema", step::connected, [](liar& me) { introduce(me, [](hello& hi) { hi.schema ^= 1; }); },
     errc::version_mismatch, "use the same build"},
    {"only versions to come", step::connected,
     [](liar& me) { introduce(me, [](hello& hi) { hi.oldest = hi.newest = version_max + 1; }); },
     errc::version_mismatch, "use builds with a version in common"},
    {"a range of versions that is none", step::connected,
     [](liar& me) { introduce(me, [](hello& hi) { hi.oldest = 2, hi.newest = 1; }); }, errc::version_mismatch,
     "use builds with a version in common"},
    {"a group without a size", step::connected,
     [](liar& me) { introduce(me, [](hello& hi) { hi.group = "g"; }); }, errc::invalid_argument,
     "a group needs both a name and a size"},
    {"a name of 256 bytes", step::connected,
     [](liar& me) { introduce(me, [](hello& hi) { hi.name.assign(256, 'x'); }); }, broken,
     "the name in hello has 256 bytes, more than 255"},
    {"65 devices", step::connected, [](liar& me) { introduce(me, [](hello& hi) { hi.devices.resize(65); }); },
     broken, "can't be read"},
    {"a hello that is cut short", step::connected, [](liar& me) { cut_short(me, honest_hello()); }, broken,
     "can't be read"},
    {"a count that overflows", step::connected,
     [](liar& me) {
       auto bytes = liar::written(honest_hello(""));
       for (std::size_t i = bytes.size() - 4; i < bytes.size(); ++i) bytes[i] = std::byte(0xff);
       me.say_bytes(bytes);
     },
     broken, "can't be read"},
    {"an empty datagram", step::connected, [](liar& me) { me.say_bytes({}); }, errc::ok, ""},
    {"an unknown message", step::connected,
     [](liar& me) {
       std::byte const tag[] = {std::byte(22)};
       me.say_bytes(tag);
     },
     broken, "can't be read"},
    {"a datagram of 200,000 bytes", step::connected,
     [](liar& me) { me.say_bytes(std::vector<std::byte>(200'000)); }, broken,
     "sent a message of 200000 bytes where"},
    {"a descriptor with hello", step::connected,
     [](liar& me) {
       auto const fd = pipe_end();
       me.say(honest_hello(), {fd.get()});
     },
     broken, "1 descriptors with a message that has 0"},
    {"as many descriptors as fit", step::connected,
     [](liar& me) {
       auto const fd = pipe_end();
       me.say_bytes(liar::written(honest_hello()), std::vector<int>(253, fd.get()));
     },
     broken, "253 descriptors where 1 are allowed"},

    {"hello after watch", step::connected,
     [](liar& me) {
       me.say(honest_watch());
       me.say(honest_hello());
     },
     broken, "hello, which one that only watches never says"},
    {"a watch with another schema", step::connected,
     [](liar& me) {
       auto what = honest_watch();
       what.schema ^= 1;
       me.say(what);
     },
     errc::version_mismatch, "were built from different messages"},
    {"watch without end, and its answers unread", step::connected,
     [](liar& me) {
       for (int i = 0; i <= 2 * max_idle_messages; ++i) me.say(honest_watch());
     },
     errc::ok, ""}, // it is given up, and what it would be told has no room

    // ---- greeted, no update
    {"watch after hello", step::greeted, [](liar& me) { me.say(honest_watch()); }, broken, "watch, which"},
    {"hello twice", step::greeted, [](liar& me) { me.say(honest_hello()); }, broken, "hello, which"},
    {"a ring of its own", step::greeted,
     [](liar& me) {
       auto const memory = memory_file(lie_bucket * lie_slots);
       me.say(honest_ring(), {memory.get()});
     },
     broken, "ring, which a receiver never says"},
    {"an update of its own", step::greeted, [](liar& me) { me.say(honest_begin()); }, broken,
     "begin, which a receiver never says"},
    {"accept before begin", step::greeted, [](liar& me) { me.say(accept{1}); }, broken,
     "accept for update 1, in which it does not take part"},
    {"a ring mapped that was not offered", step::greeted, [](liar& me) { me.say(ring_mapped{0}); }, broken,
     "ring_mapped for ring 0, which it was not asked to map"},
    {"aborted, without an abort", step::greeted, [](liar& me) { me.say(aborted{1}); }, broken,
     "aborted for update 1, which nobody has aborted"},
    {"alive in an update that does not exist", step::greeted, [](liar& me) { me.say(alive{99}); }, broken,
     "alive for update 99, which does not exist"},
    {"alive without end", step::greeted,
     [](liar& me) {
       for (int i = 0; i <= 2 * max_idle_messages; ++i) me.say(alive{0});
     },
     broken, "messages in a row that move nothing; alive is needed every"},
    {"a text of 40,000 bytes", step::greeted,
     [](liar& me) {
       me.say(goodbye{0, std::string(40'000, 'x')});
     },
     broken, "can't be read"},
    {"words after goodbye", step::greeted,
     [](liar& me) {
       me.say(goodbye{0, "\x1b[2Jbye\n"});
       me.say(accept{1});
       me.say(honest_hello());
     },
     errc::ok, ""},

    // ---- in an update
    {"the ring mapped twice", step::begun, [](liar& me) { me.say(ring_mapped{0}); }, broken,
     "ring_mapped for ring 0, which it was not asked to map"},
    {"the ring refused that was mapped", step::begun,
     [](liar& me) {
       me.say(ring_refused{0, 43, "no"});
     },
     broken, "ring_refused for ring 0"},
    {"accept for another update", step::begun, [](liar& me) { me.say(accept{me.update + 1}); }, broken,
     "in which it does not take part"},
    {"the manifest twice", step::begun,
     [](liar& me) {
       me.say(need_manifest{me.update});
       me.say(need_manifest{me.update});
     },
     broken, "twice or after its accept"},
    {"all copied before it accepts", step::begun, [](liar& me) { me.say(all_copied{me.update}); }, broken,
     "after it released 0 of 3 buckets"},
    {"released before anything was published", step::begun,
     [](liar& me) {
       me.say(released{me.update, 1});
     },
     broken, "which it does not hold"},
    {"accept twice", step::accepted, [](liar& me) { me.say(accept{me.update}); }, broken,
     "which it has accepted already"},
    {"refuse what it accepted", step::accepted,
     [](liar& me) {
       me.say(refuse{me.update, 22, "no"});
     },
     broken, "which it has accepted already"},
    {"a manifest after accept", step::accepted, [](liar& me) { me.say(need_manifest{me.update}); }, broken,
     "twice or after its accept"},
    {"a seq from the future", step::published,
     [](liar& me) {
       me.say(released{me.update, me.seq + 100});
     },
     broken, "which it does not hold"},
    {"a release for another update", step::published,
     [](liar& me) {
       me.say(released{me.update + 1, me.seq});
     },
     broken, "in which it does not take part"},
    {"a release twice", step::published,
     [](liar& me) {
       me.say(released{me.update, me.seq});
       me.say(released{me.update, me.seq});
     },
     broken, "which it does not hold"},
    {"all copied after one bucket of three", step::released, [](liar& me) { me.say(all_copied{me.update}); },
     broken, "all_copied for update 1 after it released 1 of 3 buckets"},
    {"committed without commit", step::released, [](liar& me) { me.say(committed{me.update}); }, broken,
     "which it was not told to commit"},
    {"failed without commit", step::released,
     [](liar& me) {
       me.say(failed{me.update, 32, "no"});
     },
     broken, "which it was not told to commit"},
    {"alive without end, holding a slot", step::published,
     [](liar& me) {
       for (int i = 0; i <= 2 * max_idle_messages; ++i) me.say(alive{me.update});
     },
     broken, "messages in a row that move nothing"},
    {"a datagram that is cut short, holding a slot", step::published,
     [](liar& me) {
       cut_short(me, released{me.update, me.seq});
     },
     broken, "can't be read"},
    {"bytes behind a message", step::published,
     [](liar& me) {
       auto bytes = liar::written(released{me.update, me.seq});
       bytes.push_back({});
       me.say_bytes(bytes);
     },
     broken, "can't be read"},
    {"a descriptor with released", step::published,
     [](liar& me) {
       auto const fd = event_counter();
       me.say(released{me.update, me.seq}, {fd.get()});
     },
     broken, "1 descriptors with a message that has 0"},
    {"an empty datagram, holding a slot", step::published, [](liar& me) { me.say_bytes({}); },
     errc::peer_gone, "has closed the connection"},
    {"gone, holding a slot", step::published, [](liar& me) { me.hang_up(); }, errc::peer_gone, ""},
    {"all copied twice", step::copied,
     [](liar& me) {
       me.expect<commit>();
       me.say(all_copied{me.update});
     },
     broken, "all_copied for update 1"},
    {"accept instead of committed", step::committing, [](liar& me) { me.say(accept{me.update}); }, broken,
     "which it has accepted already"},
    // ---- the sender's own tensors
    {"accept as mapped what lies nowhere", step::begun, [](liar& me) { me.say(accept_as(me, 1)); }, broken,
     "as mapped, which it can't be"},
    {"a placement that there is not", step::begun, [](liar& me) { me.say(need_placement{me.update}); },
     broken, "without a placement"},
    {"a segment before any update", step::greeted,
     [](liar& me) {
       me.say(need_segment{1, 1, 0});
     },
     broken, "need_segment for update 1, in which it does not take part"},
    {"a segment that is not placed", step::begun,
     [](liar& me) {
       me.say(need_segment{me.update, 99, 0});
     },
     broken, "part 0 of segment 99, which update 1 does not have", true},
    {"a part that its segment does not have", step::begun,
     [](liar& me) {
       me.say(need_segment{me.update, 1, 7});
     },
     broken, "part 7 of segment 1, which update 1 does not have", true},
    {"the same segment without end", step::begun,
     [](liar& me) {
       for (int i = 0; i <= 2 * max_idle_messages; ++i) {
         me.say(need_segment{me.update, 1, 0});
         if (!me.hear()) return; // each part, and what it is told in the end
       }
     },
     broken, "messages in a row that move nothing", true},
    {"the placement twice", step::begun,
     [](liar& me) {
       me.say(need_placement{me.update});
       me.say(need_placement{me.update});
     },
     broken, "need_placement for update 1 twice", true},
    {"accept in a way that there is not", step::begun, [](liar& me) { me.say(accept_as(me, 2)); }, broken,
     "as mapped, which it can't be", true},
    {"all copied before it accepts to read", step::begun, [](liar& me) { me.say(all_copied{me.update}); },
     broken, "all_copied for update 1 after it released 0 of 3 buckets", true},
    {"unmapped what nobody wants back", step::begun, [](liar& me) { me.say(unmapped{{1}}); }, broken,
     "unmapped for segment 1, which it was not told to unmap", true},
    {"unmapped nothing", step::begun, [](liar& me) { me.say(unmapped{}); }, broken, "unmapped for no segment",
     true},
    {"what only a sender says of its tensors", step::begun, [](liar& me) { me.say(read_mapped{me.update}); },
     broken, "read_mapped, which a receiver never says", true},
    {"committed before it has read", step::reading, [](liar& me) { me.say(committed{me.update}); }, broken,
     "committed for update 1, which it was not told to commit", true},
    {"a segment after accept", step::accepted, [](liar& me) { me.say(need_segment{me.update, 1, 0}); },
     broken, "which it has accepted already", true},
    {"accept again, and not as mapped", step::reading, [](liar& me) { me.say(accept_as(me, 0)); }, broken,
     "which it has accepted already", true},
    {"a bucket released that it did not get", step::reading, [](liar& me) { me.say(released{me.update, 1}); },
     broken, "which it does not hold", true},
    {"gone while it reads", step::reading, [](liar& me) { me.hang_up(); }, errc::peer_gone, "", true},
    {"all that it has read twice", step::copied, [](liar& me) { me.say(all_copied{me.update}); }, broken,
     "all_copied for update 1", true},
    {"an abort of an update that is over", step::committed,
     [](liar& me) { me.say(abort_update{me.update, 6, "no"}); }, broken, "in which it does not take part"},
    {"committed twice", step::committed, [](liar& me) { me.say(committed{me.update}); }, broken,
     "in which it does not take part"},
};

} // namespace

std::span<receiver_lie const> receiver_lies() { return lies; }

namespace {

void walk(receiver_lie const& what, liar& me, void (*ready)(void*), void* with) {
  auto const lie_at = [&](step where) {
    if (what.at != where) return false;
    what.lie(me);
    return true;
  };
  if (lie_at(step::connected)) return;
  me.say(honest_hello());
  me.expect<welcome>();
  if (lie_at(step::greeted)) return;
  ready(with);
  if (!what.mapped) {
    me.expect<ring>();
    me.say(ring_mapped{0});
  }
  auto const b = me.expect<begin>();
  me.update = b.update;
  if (lie_at(step::begun)) return;
  me.say(accept_as(me, what.mapped));
  if (lie_at(step::accepted)) return;
  if (what.mapped) me.expect<read_mapped>();
  if (lie_at(step::reading)) return;
  for (std::uint32_t i = 0; i < b.buckets && !what.mapped; ++i) {
    me.seq = me.expect<published>().seq;
    if (i == 0 && lie_at(step::published)) return;
    me.say(released{b.update, me.seq});
    if (i == 0 && lie_at(step::released)) return;
  }
  me.say(all_copied{b.update});
  if (lie_at(step::copied)) return;
  if (!what.mapped) me.expect<commit>();
  if (lie_at(step::committing)) return;
  me.say(committed{b.update});
  what.lie(me);
}

} // namespace

std::string tell(receiver_lie const& what, std::string const& path, void (*ready)(void*), void* with) {
  try {
    auto me = liar::at(path);
    walk(what, me, ready, with);
    if (me.socket() < 0) return {};
    me.hear_out();
    // A connection that ends without words is told nothing.
    return what.code == broken || what.at <= step::greeted ? judged(me.last(), what.code, what.words) : "";
  } catch (std::exception const& error) { return error.what(); }
}

} // namespace ropeway::testing
