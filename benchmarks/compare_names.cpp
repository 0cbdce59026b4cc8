// What the plain form of send_weights pays to compare names, dtypes and shapes with the last layout, in one
// pass, and what prepared tensors save. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <asio/io_context.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <ropeway/ropeway.hpp>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  std::size_t const count = argc > 1 ? std::stoul(argv[1]) : 20'000;
  std::string directory = (std::filesystem::temp_directory_path() / "ropeway-XXXXXX").string();
  if (::mkdtemp(directory.data()) == nullptr) throw std::runtime_error("no temporary directory");
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i)
    names.push_back("model.layers." + std::to_string(i / 390) + ".mlp.experts." + std::to_string(i % 390) +
                    ".down_proj.weight");
  float value = 0;
  std::vector<ropeway::tensor_view> tensors;
  for (auto const& name : names)
    tensors.emplace_back(name, ropeway::dtype::f32, ropeway::shape{1, 1}, &value);

  asio::io_context loop;
  std::vector<double> micros;
  {
    ropeway::sender sender(loop.get_executor(), directory + "/s");
    for (int turn = 0; turn < 22; ++turn) {
      auto const start = std::chrono::steady_clock::now();
      ropeway::prepared_tensors const set =
          sender.prepare(tensors); // the same pass that each plain send makes
      micros.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
  }
  loop.run();
  std::filesystem::remove_all(directory);
  double const first = micros.front();
  std::vector<double> rest(micros.begin() + 1, micros.end());
  std::sort(rest.begin(), rest.end());
  double const median = rest[rest.size() / 2];
  std::cout << count << " tensors: " << first << " us the first time, with the cutting into pieces; then "
            << median << " us (median of " << rest.size() << "), "
            << 1000 * median / static_cast<double>(count) << " ns a tensor\n";
} catch (std::exception const& error) {
  std::cerr << "compare-names: " << error.what() << '\n';
  return 1;
}
