// The server's command line. A sample of ropeway; Apache-2.0.
#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>

#include "settings.hpp"

int main(int argc, char** argv) try {
  server_settings settings;
  std::string token_file;
  CLI::App app(
      "Sentence embeddings over HTTP, by a BERT model whose weights a trainer sends (docs/serving.md).");
  app.add_option("--vocab", settings.vocabulary, "the WordPiece vocabulary, one token a line")->required();
  app.add_option("--socket-dir", settings.socket_directory,
                 "where trainers' sockets lie; no other is connected to");
  app.add_option("--socket", settings.socket, "follow the trainer with this name there, from the start");
  app.add_option("--name", settings.name, "how the trainer's reports call this server")
      ->capture_default_str();
  app.add_option("--address", settings.address, "where to listen")->capture_default_str();
  app.add_option("--port", settings.port, "0 takes any that is free")->capture_default_str();
  app.add_option("--token-file", token_file, "holds the token that control requests must bear");
  app.add_option("--heads", settings.heads, "attention heads of the model")->capture_default_str();
  app.add_option("--tokens", settings.longest, "longest text; what is beyond is cut off")
      ->capture_default_str();
  app.add_option("--workers", settings.workers, "requests that are computed at once")->capture_default_str();
  app.add_option("--connections", settings.connections, "most connections")->capture_default_str();
  app.add_option("--waiting", settings.waiting, "most requests that wait")->capture_default_str();
  app.add_option("--indexed", settings.indexed, "most texts of the index")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (!token_file.empty()) settings.token = read_token(token_file);
  serve(settings);
  return 0;
} catch (std::exception const& error) {
  std::cerr << "inference-server: " << error.what() << '\n';
  return 1;
}
