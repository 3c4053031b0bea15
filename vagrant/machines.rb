# What the Vagrantfile asks for: which machines there are, and what is done around Vagrant's own work.
require "digest"
require "yaml"

module Machines
  HERE    = File.expand_path("..", __dir__)
  NET     = ENV.fetch("NET", "192.168.56")
  CONSULS = Integer(ENV.fetch("CONSULS", "3"))
  TODOS   = Integer(ENV.fetch("TODOS", "2"))
  SPARES  = 2 # todo machines that `vagrant up` leaves out, and `vagrant up todo2` makes
  # Without hardware virtualisation libvirt can still emulate a processor; /dev/kvm may be there and of no use: EMULATE=1 says so.
  EMULATE = !File.exist?("/dev/kvm") || !ENV["EMULATE"].to_s.empty?
  MANUAL  = !ENV["MANUAL"].to_s.empty?

  # The same name each time, so that what a killed `vagrant up` left can be found, and another in another clone of the project.
  PREFIX = "lab-#{Digest::SHA256.hexdigest(HERE)[0, 6]}"

  # Vagrant's triggers come for each machine, for several at once, and some work is to be done once.
  ONCE = Mutex.new
  DONE = {}

  class << self
    # list is machines.yaml with addresses, without the Consul servers that are not wanted, and with some todos more.
    def list
      file  = YAML.load_file(File.join(__dir__, "machines.yaml"))
      more  = file["more"].find { |m| m["role"] == "todo" }
      todos = file["machines"].count { |m| m["role"] == "todo" }
      all   = file["machines"] + (todos...TODOS + SPARES).map { |i| more.merge("name" => "todo#{i}", "host" => more["host"] + i - todos) }
      all.reject { |m| m["role"] == "consul" && number(m) >= CONSULS }.map do |m|
        m.merge("address" => "#{NET}.#{m["host"]}", "autostart" => m["role"] != "todo" || number(m) < TODOS)
      end
    end

    # stage builds and renders what the machines install, and what they are made from.
    def stage(machine)
      provider = machine.provider_name.to_s
      if machine.id.nil? && %w[lxc libvirt].include?(provider)
        once(:box) { system("scripts/box", provider, chdir: HERE) || abort("the box could not be made") }
      end
      slow  = EMULATE && provider == "libvirt"
      words = ["machines", "NET=#{NET}", "CONSULS=#{CONSULS}", "TODOS=#{TODOS + SPARES}", "SLOW=#{"1" if slow}"]
      once(:stage) { system("make", "-C", HERE, *words) || abort("what the machines install could not be made ready") }
    end

    # operate does, once all machines are up, what no provisioning may do. It is skipped where making them failed.
    def operate
      once(:operate) do
        at_exit do
          well = $!.nil? || ($!.is_a?(SystemExit) && $!.success?)
          exit(1) unless well && lab("operate", *("--manual" if MANUAL))
        end
      end
    end

    # tidy deletes the container of a machine that Vagrant has not made: a `vagrant up` that was killed had begun to.
    def tidy(machine)
      return unless machine.provider_name == :lxc && machine.id.nil?
      system("sudo", "lxc-destroy", "--force", "--name", "#{PREFIX}-#{machine.name}", out: File::NULL, err: File::NULL)
    end

    # leave stops a todo before its machine goes, so that it leaves discovery first.
    def leave(machine)
      lab("stop", machine.name.to_s) if machine.name.to_s.start_with?("todo") && machine.state.id == :running
    end

    private

    def number(machine) = machine["name"][/\d+$/].to_i
    def once(what) = ONCE.synchronize { DONE[what] ||= yield }
    def lab(*words) = system("bin/lab", "--on", "vagrant", *words, chdir: HERE)
  end
end
