// Whom to trust, and where a socket may lie: the rules for a socket's path and directory.
// A connection hands out memory, so its socket is a capability. Part of ropeway; Apache-2.0.
#pragma once
#include <string>
#include <sys/types.h>
#include <vector>

namespace ropeway::wire {

/// Whom to trust. By default: processes of this user, and a directory that nobody else can enter.
class trust {
 public:
  /// Lets processes of another user connect (or be connected to).
  trust& user(uid_t uid);
  /// Trusts processes of these users alone, of this one only if it is among them.
  static trust only(std::vector<uid_t> users);
  /// Lets the directory be entered by its group (0750 or 0710), and makes the socket 0660. Use it with
  /// `user()`.
  trust& group_access(bool on = true);
  /// Takes any directory, also one that others can write to, such as /tmp. Peers' users are still checked.
  trust& any_directory(bool on = true);

  /// Whether a process of this user may be the peer.
  bool allows(uid_t uid) const noexcept;
  bool group_access() const noexcept { return group_; }
  bool any_directory() const noexcept { return any_directory_; }

 private:
  std::vector<uid_t> users_;
  bool self_ = true;
  bool group_ = false, any_directory_ = false;
};

/// Checks that `path` can name a socket at all. Throws `errc::bad_path`: empty, too long (the message says
/// the limit).
void check_path(std::string const& path);

/// For who connects: that nobody but a trusted user, or root, could have put the socket there. The directory
/// must belong to one of them and be writable for its owner alone; so must be what links to it. Throws
/// `errc::not_permitted` with a message that says what to do.
void check_directory_of(std::string const& path, trust const& whom);

/// `check_path`, then the directory: makes its last component (0700; 0750 with `group_access`) when it is
/// missing, and checks owner and mode. What already lies at the path must be a socket. Changes nothing else.
/// Throws `errc::bad_path` or `errc::not_permitted` with a message that says what to do.
void prepare_directory(std::string const& path, trust const& whom);

} // namespace ropeway::wire
