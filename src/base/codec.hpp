// Bytes and text from any struct that Boost.Describe knows: encode, decode, print, schema_hash,
// described_equal. Part of ropeway; Apache-2.0.
//
// Integers and enums are little-endian and of fixed width, bool is 0 or 1, std::string and std::vector carry
// a u32 count, std::array<std::uint8_t, N> is its bytes, std::variant is a u8 index and the alternative, a
// described struct is its members in order. There is exactly one encoding of a value, so equal bytes and
// equal values are the same.
#pragma once
#include <algorithm>
#include <array>
#include <boost/describe.hpp>
#include <boost/mp11/algorithm.hpp>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "ropeway/error.hpp"

namespace ropeway::codec {

/// A struct to which later versions append members says so itself, with a member type `appended_to`: bytes
/// behind the last known member are skipped instead of refused. Only the outermost struct (or the outermost
/// variant's alternative) may be such.
template <class T>
inline constexpr bool extensible = requires {
  typename T::appended_to;
};

/// An enum that is not described needs a specialisation with `static constexpr E last`: 0 to `last` are
/// valid.
template <class E>
struct enum_range;

/// What decode accepts from who may lie. Besides, a count never exceeds what the remaining bytes can hold, so
/// a decode allocates no more than a small multiple of its input.
struct limits {
  std::size_t max_string = 64 * 1024;
  std::size_t max_elements = std::size_t{1} << 24;
};

/// What came of a decode: true if all is well, otherwise a constant sentence, and where.
class result {
 public:
  constexpr result() = default;
  constexpr result(std::string_view what, std::string_view member, std::size_t at)
      : what_(what), member_(member), at_(at) {}
  constexpr explicit operator bool() const noexcept { return what_.empty(); }
  constexpr std::string_view what() const noexcept { return what_; }     ///< empty if all is well
  constexpr std::string_view member() const noexcept { return member_; } ///< the member concerned, or empty
  constexpr std::size_t at() const noexcept { return at_; }              ///< the byte concerned
  std::string text() const {
    if (*this) return "ok";
    std::string line(what_);
    if (!member_.empty()) line.append(" (").append(member_).append(")");
    return line.append(" at byte ").append(std::to_string(at_));
  }

 private:
  std::string_view what_, member_;
  std::size_t at_ = 0;
};

namespace detail {

template <class T>
concept described = std::is_class_v<T> && boost::describe::has_describe_members<T>::value;
template <class T>
concept described_enum = std::is_enum_v<T> && boost::describe::has_describe_enumerators<T>::value;
template <class T>
concept integer = std::integral<T> && !std::same_as<T, bool>;

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;
template <class T>
inline constexpr bool is_bytes = false;
template <std::size_t N>
inline constexpr bool is_bytes<std::array<std::uint8_t, N>> = true;
template <class T>
inline constexpr bool is_variant = false;
template <class... T>
inline constexpr bool is_variant<std::variant<T...>> = sizeof...(T) <= 256;
template <class T>
inline constexpr bool unknown = false;

template <described T>
using members =
    boost::describe::describe_members<T, boost::describe::mod_public | boost::describe::mod_inherited>;

/// Calls f(name, member) for each described member of t.
template <class T, class F>
constexpr void for_each_member(T& t, F f) {
  boost::mp11::mp_for_each<members<std::remove_const_t<T>>>([&](auto d) { f(d.name, t.*d.pointer); });
}

template <described T, class F>
constexpr void for_each_member_type(F f) {
  boost::mp11::mp_for_each<members<T>>([&]<class D>(D d) {
    using member = std::remove_cvref_t<decltype(std::declval<T&>().*d.pointer)>;
    f(d.name, std::type_identity<member>{});
  });
}

template <class T>
constexpr auto to_unsigned(T v) {
  if constexpr (std::is_enum_v<T>)
    return to_unsigned(static_cast<std::underlying_type_t<T>>(v));
  else
    return static_cast<std::make_unsigned_t<T>>(v);
}

/// The unqualified name of a struct or enum, the same with every compiler.
template <class T>
constexpr std::string_view type_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  text.remove_prefix(text.find("T = ") + 4);
  text = text.substr(0, text.find_first_of(";]"));
  auto const colon = text.rfind(':');
  return colon == text.npos ? text : text.substr(colon + 1);
}

/// The fewest bytes that a T can be.
template <class T>
constexpr std::size_t least_bytes() {
  if constexpr (std::same_as<T, bool>)
    return 1;
  else if constexpr (integer<T> || std::is_enum_v<T>)
    return sizeof(T);
  else if constexpr (std::same_as<T, std::string> || is_vector<T>)
    return 4;
  else if constexpr (is_bytes<T>)
    return std::tuple_size_v<T>;
  else if constexpr (is_variant<T>)
    return 1;
  else {
    std::size_t sum = 0;
    for_each_member_type<T>([&]<class M>(char const*, std::type_identity<M>) { sum += least_bytes<M>(); });
    return sum;
  }
}

class writer {
 public:
  explicit writer(std::vector<std::byte>& out) : out_(out) {}

  template <class T>
  void put(T const& v) {
    if constexpr (std::same_as<T, bool>)
      out_.push_back(v ? std::byte{1} : std::byte{0});
    else if constexpr (integer<T> || std::is_enum_v<T>)
      put_integer(to_unsigned(v));
    else if constexpr (std::same_as<T, std::string>) {
      put_count(v.size());
      append(v.data(), v.size());
    } else if constexpr (is_vector<T>) {
      put_count(v.size());
      for (auto const& element : v) put(element);
    } else if constexpr (is_bytes<T>)
      append(v.data(), v.size());
    else if constexpr (is_variant<T>) {
      put_integer(static_cast<std::uint8_t>(v.index()));
      std::visit([&](auto const& alternative) { put(alternative); }, v);
    } else if constexpr (described<T>)
      for_each_member(v, [&](char const*, auto const& member) { put(member); });
    else
      static_assert(unknown<T>, "describe the type, or use one that the codec knows");
  }

 private:
  template <std::unsigned_integral U>
  void put_integer(U v) {
    auto const at = out_.size(); // not insert(): g++ 12 sees it write beyond the end, with -O3
    out_.resize(at + sizeof(U));
    for (std::size_t i = 0; i < sizeof(U); ++i) out_[at + i] = static_cast<std::byte>((v >> (8 * i)) & 0xff);
  }
  void put_count(std::size_t n) {
    if (n > UINT32_MAX)
      throw transfer_error(errc::overflow, "more than 4294967295 elements in one message field");
    put_integer(static_cast<std::uint32_t>(n));
  }
  void append(void const* data, std::size_t n) {
    auto const* first = static_cast<std::byte const*>(data);
    out_.insert(out_.end(), first, first + n);
  }
  std::vector<std::byte>& out_;
};

class reader {
 public:
  reader(std::span<std::byte const> in, limits const& limit) : in_(in), limit_(limit) {}

  template <class T>
  void get(T& v) {
    static_assert(!extensible<T>, "an extensible struct must be outermost");
    get_any(v);
  }

  /// The outermost value and the end of the bytes.
  template <class T>
  result get_all(T& v) {
    bool skip_rest = extensible<T>;
    if constexpr (is_variant<T>)
      get_variant(v, &skip_rest);
    else
      get_any(v);
    member_ = {};
    if (ok() && at_ != in_.size() && !skip_rest) fail("more bytes than the message has");
    return failure_;
  }

 private:
  bool ok() const noexcept { return static_cast<bool>(failure_); }
  std::size_t left() const noexcept { return in_.size() - at_; }
  void fail(std::string_view what) {
    if (ok()) failure_ = result(what, member_, at_);
  }

  template <class T>
  void get_any(T& v) {
    if constexpr (std::same_as<T, bool>) {
      std::uint8_t byte = 0;
      get_integer(byte);
      if (byte > 1) fail("a truth value is neither 0 nor 1");
      v = byte == 1;
    } else if constexpr (integer<T>) {
      std::make_unsigned_t<T> raw = 0;
      get_integer(raw);
      v = static_cast<T>(raw);
    } else if constexpr (std::is_enum_v<T>)
      get_enum(v);
    else if constexpr (std::same_as<T, std::string>) {
      std::size_t const n = get_count(1, limit_.max_string);
      v.assign(reinterpret_cast<char const*>(in_.data() + at_), n);
      at_ += n;
    } else if constexpr (is_vector<T>) {
      using element = typename T::value_type;
      static_assert(least_bytes<element>() > 0, "elements without bytes could be any number");
      std::size_t const n = get_count(least_bytes<element>(), limit_.max_elements);
      v.clear();
      v.reserve(n);
      for (std::size_t i = 0; i < n && ok(); ++i) get(v.emplace_back());
    } else if constexpr (is_bytes<T>) {
      if (need(v.size()))
        for (auto& byte : v) byte = std::to_integer<std::uint8_t>(in_[at_++]);
    } else if constexpr (is_variant<T>)
      get_variant(v, nullptr);
    else if constexpr (described<T>)
      for_each_member(v, [&](char const* name, auto& member) {
        if (!ok()) return;
        member_ = name;
        get(member);
      });
    else
      static_assert(unknown<T>, "describe the type, or use one that the codec knows");
  }

  bool need(std::size_t n) {
    if (ok() && left() < n) fail("the message ends early");
    return ok();
  }
  template <std::unsigned_integral U>
  void get_integer(U& v) {
    v = 0;
    if (!need(sizeof(U))) return;
    for (std::size_t i = 0; i < sizeof(U); ++i)
      v = static_cast<U>(
          v | static_cast<U>(static_cast<U>(std::to_integer<std::uint8_t>(in_[at_ + i])) << (8 * i)));
    at_ += sizeof(U);
  }
  std::size_t get_count(std::size_t bytes_each, std::size_t limit) {
    std::uint32_t n = 0;
    get_integer(n);
    if (ok() && n > limit) fail("a count is above its limit");
    if (ok() && n > left() / bytes_each) fail("a count is larger than what follows");
    return ok() ? n : 0;
  }
  template <class E>
  void get_enum(E& v) {
    std::make_unsigned_t<std::underlying_type_t<E>> raw = 0;
    get_integer(raw);
    bool known = false;
    if constexpr (described_enum<E>)
      boost::mp11::mp_for_each<boost::describe::describe_enumerators<E>>(
          [&](auto d) { known = known || to_unsigned(d.value) == raw; });
    else
      known = raw <= to_unsigned(enum_range<E>::last);
    if (!known)
      fail("an unknown value of an enumeration");
    else
      v = static_cast<E>(raw);
  }
  template <class... T>
  void get_variant(std::variant<T...>& v, bool* skip_rest) {
    std::uint8_t index = 0;
    get_integer(index);
    if (!ok()) return;
    if (index >= sizeof...(T)) return fail("an unknown kind of message");
    boost::mp11::mp_with_index<sizeof...(T)>(index, [&](auto i) {
      auto& alternative = v.template emplace<i>();
      using chosen = std::remove_reference_t<decltype(alternative)>;
      if constexpr (extensible<chosen>) {
        if (!skip_rest) return fail("an extensible message inside another");
        *skip_rest = true;
      }
      get_any(alternative);
    });
  }

  std::span<std::byte const> in_;
  limits const& limit_;
  std::size_t at_ = 0;
  std::string_view member_;
  result failure_;
};

class printer {
 public:
  template <class T>
  void put(T const& v) {
    if constexpr (std::same_as<T, bool>)
      text_ += v ? "true" : "false";
    else if constexpr (integer<T>)
      text_ += std::to_string(v);
    else if constexpr (std::is_enum_v<T>)
      put_enum(v);
    else if constexpr (std::same_as<T, std::string>)
      put_string(v);
    else if constexpr (is_bytes<T>) {
      for (auto byte : v) put_hex(byte);
    } else if constexpr (is_vector<T>) {
      text_ += '[';
      for (std::size_t i = 0; i < v.size(); ++i) {
        if (i != 0) text_ += ", ";
        if (i == most_elements) {
          text_ += "... " + std::to_string(v.size() - i) + " more";
          break;
        }
        put(v[i]);
      }
      text_ += ']';
    } else if constexpr (is_variant<T>)
      std::visit([&](auto const& alternative) { put(alternative); }, v);
    else if constexpr (described<T>) {
      text_ += type_name<T>();
      text_ += '{';
      bool first = true;
      for_each_member(v, [&](char const* name, auto const& member) {
        if (!std::exchange(first, false)) text_ += ", ";
        text_.append(name) += '=';
        put(member);
      });
      text_ += '}';
    } else
      static_assert(unknown<T>, "describe the type, or use one that the codec knows");
  }
  std::string take() { return std::move(text_); }

 private:
  static constexpr std::size_t most_elements = 8, most_characters = 160;

  void put_hex(unsigned byte) {
    constexpr char digits[] = "0123456789abcdef";
    text_ += digits[(byte >> 4) & 15];
    text_ += digits[byte & 15];
  }
  void put_string(std::string_view v) {
    text_ += '"';
    for (char const c : v.substr(0, most_characters)) {
      auto const byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\')
        (text_ += '\\') += c;
      else if (byte >= 0x20 && byte < 0x7f)
        text_ += c;
      else {
        text_ += "\\x";
        put_hex(byte);
      }
    }
    text_ += '"';
    if (v.size() > most_characters) text_ += "...(" + std::to_string(v.size()) + " bytes)";
  }
  template <class E>
  void put_enum(E v) {
    char const* known = nullptr;
    if constexpr (described_enum<E>) known = boost::describe::enum_to_string(v, nullptr);
    if (known)
      text_ += known;
    else
      text_ += std::to_string(static_cast<std::underlying_type_t<E>>(v));
  }
  std::string text_;
};

/// FNV-1a over a spelling of the type.
class schema {
 public:
  template <class T>
  constexpr void add() {
    if constexpr (std::same_as<T, bool>)
      add("bool");
    else if constexpr (integer<T>)
      add(std::signed_integral<T> ? "i" : "u"), add(sizeof(T));
    else if constexpr (std::is_enum_v<T>) {
      add("enum"), add(type_name<T>()), add(sizeof(T));
      if constexpr (described_enum<T>)
        boost::mp11::mp_for_each<boost::describe::describe_enumerators<T>>(
            [&](auto d) { add(d.name), add(to_unsigned(d.value)); });
      else
        add(to_unsigned(enum_range<T>::last));
    } else if constexpr (std::same_as<T, std::string>)
      add("string");
    else if constexpr (is_bytes<T>)
      add("bytes"), add(std::tuple_size_v<T>);
    else if constexpr (is_vector<T>)
      add("vector"), add<typename T::value_type>();
    else if constexpr (is_variant<T>) {
      add("variant"), add(std::variant_size_v<T>);
      boost::mp11::mp_for_each<boost::mp11::mp_transform<std::type_identity, T>>(
          [&]<class A>(std::type_identity<A>) { add<A>(); });
    } else if constexpr (described<T>) {
      add("struct"), add(type_name<T>());
      for_each_member_type<T>([&]<class M>(char const* name, std::type_identity<M>) { add(name), add<M>(); });
      add("end");
    } else
      static_assert(unknown<T>, "describe the type, or use one that the codec knows");
  }
  constexpr std::uint64_t value() const noexcept { return hash_; }

 private:
  constexpr void add(std::string_view text) {
    for (char const c : text) mix(static_cast<unsigned char>(c));
    mix(0); // "ab" "c" is not "a" "bc"
  }
  constexpr void add(char const* text) { add(std::string_view(text)); }
  constexpr void add(std::unsigned_integral auto number) {
    for (std::size_t i = 0; i < 8; ++i)
      mix(static_cast<unsigned char>((std::uint64_t{number} >> (8 * i)) & 0xff));
  }
  constexpr void mix(unsigned char byte) { hash_ = (hash_ ^ byte) * 0x100000001b3u; }
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

} // namespace detail

/// Appends the bytes of `value`. Throws transfer_error(errc::overflow) for a string or vector beyond 32 bits.
template <class T>
void encode(T const& value, std::vector<std::byte>& out) {
  detail::writer(out).put(value);
}

/// Reads one value that must take all of `bytes`. If the result is false, `value` is valid but of no use.
template <class T>
result decode(std::span<std::byte const> bytes, T& value, limits const& limit = {}) {
  return detail::reader(bytes, limit).get_all(value);
}

/// One line for logs and failed tests: name{member=value, ...}. Texts are quoted, escaped and cut; never
/// parse it.
template <class T>
std::string print(T const& value) {
  detail::printer p;
  p.put(value);
  return p.take();
}

/// Changes when a name, a type or the order of anything described below T changes.
template <class T>
constexpr std::uint64_t schema_hash() {
  detail::schema s;
  s.add<T>();
  return s.value();
}

/// Member by member; for structs that have no operator== of their own.
template <class T>
bool described_equal(T const& a, T const& b) {
  if constexpr (detail::is_vector<T>)
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](auto const& x, auto const& y) { return described_equal(x, y); });
  else if constexpr (detail::is_variant<T>)
    return a.index() == b.index() &&
           boost::mp11::mp_with_index<std::variant_size_v<T>>(
               a.index(), [&](auto i) { return described_equal(std::get<i>(a), std::get<i>(b)); });
  else if constexpr (detail::described<T>) {
    bool equal = true;
    boost::mp11::mp_for_each<detail::members<T>>(
        [&](auto d) { equal = equal && described_equal(a.*d.pointer, b.*d.pointer); });
    return equal;
  } else
    return a == b;
}

} // namespace ropeway::codec
