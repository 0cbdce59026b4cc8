// The real model against the reference: a program of its own, which says so where the model is not there.
// Part of ropeway; Apache-2.0.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "compare.hpp"

using namespace ropeway::testing;

TEST_CASE("all-MiniLM-L6-v2 computes what the reference does") {
  compare(load_model(real_model(".safetensors"), 12), tokenizer(real_model(".vocab.txt")),
          reference().at("model").as_object());
}

int main(int count, char** arguments) {
  if (real_model(".safetensors").empty() || real_model(".vocab.txt").empty()) {
    std::printf("SKIPPED: all-MiniLM-L6-v2 is not here; samples/fetch_model.sh fetches it\n");
    return 77;
  }
  doctest::Context context(count, arguments);
  return context.run();
}
